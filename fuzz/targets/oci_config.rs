//! Any image config is read or refused, and what was read is written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_oci::config::ImageConfig;
use nullspace_oci::platform::Platform;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = ImageConfig::parse(bytes) else { return };
    let _ = Platform::LinuxAmd64.check(&config.platform, false);
    let _ = Platform::LinuxArm64.check(&config.platform, true);
    let written = write(&config);
    let again = ImageConfig::parse(&written).expect("it was written by us");
    assert_eq!(again, config);
});

/// As a config blob.
fn write(config: &ImageConfig) -> Vec<u8> {
    serde_json::to_vec(config).expect("it holds nothing that JSON has no form for")
}
