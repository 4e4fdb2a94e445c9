//! nullspace-init
fn main() {}
