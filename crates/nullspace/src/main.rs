//! nullspace
fn main() {}
