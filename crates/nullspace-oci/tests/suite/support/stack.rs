//! Random stacks of layers: few names, so that they meet.

use proptest::prelude::*;

use super::tar::Item;

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "/", "../", "./"]), path()).prop_map(|(front, path)| format!("{front}{path}"))
}

fn in_parent(path: String, prefix: &str) -> String {
    match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/{prefix}{name}"),
        None => format!("{prefix}{path}"),
    }
}

fn item() -> impl Strategy<Value = Item> {
    let mode = prop::sample::select(vec![0o700_u32, 0o755, 0o711]);
    prop_oneof![
        6 => (path(), "[x-z]{0,3}").prop_map(|(path, data)| Item::file(path, data)),
        4 => (path(), mode.clone()).prop_map(|(path, mode)| Item { mode, ..Item::dir(path) }),
        1 => mode.prop_map(|mode| Item { mode, ..Item::dir("./") }),
        2 => (path(), target()).prop_map(|(path, target)| Item::symlink(path, target)),
        3 => (path(), path()).prop_map(|(path, target)| Item::hard_link(path, target)),
        3 => path().prop_map(|path| Item::file(in_parent(path, ".wh."), "")),
        1 => path().prop_map(|path| Item::file(format!("{path}/.wh..wh..opq"), "")),
    ]
}

/// Up to four layers of up to six entries.
pub(crate) fn stack() -> impl Strategy<Value = Vec<Vec<Item>>> {
    prop::collection::vec(prop::collection::vec(item(), 0..7), 1..5)
}
