//! Any text is outlined or refused as a Dockerfile: each line that is named is one of the text, a text outlines the same twice, and
//! what the registries and hosts of URLs are is found in time.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use nullspace_api::RequestSecrets;
use nullspace_definition::dockerfile::{check, elsewhere};
use nullspace_definition::problems::Wrong;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let args: BTreeMap<String, String> = [("VERSION", "3"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let lines = u32::try_from(text.lines().count().max(1)).expect("inputs are short");
    for (host, line) in elsewhere(text, &args) {
        assert!((1..=lines).contains(&line), "{host:?} is on line {line} of {lines}");
    }
    let secrets = RequestSecrets { base_image_auth: None, registry_auth: Vec::new(), build_secrets: Vec::new() };
    let outlined = || {
        let mut wrong = Wrong::default();
        let outline = check(text, &args, None, &secrets, &mut wrong);
        (outline, wrong.into_problems())
    };
    let (outline, problems) = outlined();
    assert!(outline.is_some() || !problems.is_empty(), "what is refused has a reason");
    for image in outline.iter().flat_map(|outline| &outline.images) {
        assert!((1..=lines).contains(&image.line), "{} is on line {} of {lines}", image.reference, image.line);
    }
    let shown = |found: &(Option<_>, Vec<_>)| format!("{found:?}");
    assert_eq!(shown(&(outline, problems)), shown(&outlined()));
});
