//! Any answer of a Firecracker that its guest has taken over: a status and a short body, or an error. No more is read than
//! the limits allow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_vmm::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, answer)) = bytes.split_first() else { return };
    let whole = fuzzing::firecracker_answer(answer, answer.len().max(1));
    let cut = fuzzing::firecracker_answer(answer, 1 + usize::from(piece % 64));
    match (whole, cut) {
        (Ok(whole), Ok(cut)) => {
            assert_eq!(whole, cut, "an answer depends on how its bytes arrive");
            assert!((100..1000).contains(&whole.status) && whole.body.len() <= 64 << 10, "{whole:?}");
            assert!(whole.fault.chars().count() <= 1000);
        }
        (Err(_), Err(_)) => {}
        // Bytes behind the body are only seen when they come with it.
        (Err(_), Ok(_)) | (Ok(_), Err(_)) => {}
    }
});
