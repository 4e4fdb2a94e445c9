//! Any stack of layers merges to a tree that a filesystem can hold, or to an error.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use nullspace_fuzz::input::Input;
use nullspace_oci::merge::{ContentSink, EntryKind, LayerEnd, LayerError, Merge, MergeLimits, MergedTree, SinkError};
use nullspace_oci::tar::TarLimits;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut layers = Vec::new();
    while !input.0.is_empty() && layers.len() < 6 {
        layers.push(input.archive());
    }
    if let Ok((tree, sink)) = merge(&layers) {
        check(&tree, &sink);
        // The same layers, the same tree: nothing hangs on addresses or hash seeds.
        let (again, _) = merge(&layers).expect("it merged before");
        assert_eq!(format!("{tree:?}"), format!("{again:?}"));
    }
});

fn merge(layers: &[Vec<u8>]) -> Result<(MergedTree<u32>, Sink), LayerError> {
    let tar = TarLimits { file_size: 1 << 40, ..TarLimits::default() };
    let limits = MergeLimits { tar, entries: 200, metadata: 1 << 16, ..MergeLimits::default() };
    let mut merge = Merge::new(Sink::default(), limits);
    for layer in layers {
        if merge.add_layer(&layer[..])? == LayerEnd::NeedsSecondReading {
            merge.read_again(&layer[..])?;
        }
    }
    merge.finish()
}

fn check(tree: &MergedTree<u32>, sink: &Sink) {
    let entries = tree.entries();
    let mut contents = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate() {
        if index == 0 {
            assert!(entry.name.is_empty() && matches!(entry.kind, EntryKind::Directory { .. }));
            continue;
        }
        assert!(entry.parent < index && matches!(entries[entry.parent].kind, EntryKind::Directory { .. }));
        let name = &*entry.name;
        assert!(
            !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0)
        );
        assert!(names.insert((entry.parent, name)), "{} is there twice", tree.path(index).escape_ascii());
        assert_eq!(tree.find(&tree.path(index)), Some(index));
        match &entry.kind {
            EntryKind::HardLink { to } => {
                assert!(*to < index);
                assert!(matches!(entries[*to].kind, EntryKind::File { .. } | EntryKind::Symlink { .. }));
            }
            EntryKind::File { size, content, .. } => {
                assert_eq!(sink.files[*content as usize], Some(*size), "what was stored is what is named");
                assert!(contents.insert(*content), "one content, two files");
            }
            EntryKind::Symlink { target, .. } => assert!(!target.is_empty() && target.len() <= 4095),
            EntryKind::Directory { .. } => {}
        }
    }
    let kept = sink.files.iter().filter(|file| file.is_some()).count();
    assert_eq!(kept, contents.len(), "content that nothing names was not handed back");
}

/// Sizes of the files that were stored and not handed back.
#[derive(Default)]
struct Sink {
    files: Vec<Option<u64>>,
    open: Option<(u64, u64)>,
}

impl ContentSink for Sink {
    type Content = u32;

    fn begin(&mut self, size: u64) -> Result<(), SinkError> {
        assert!(self.open.replace((size, 0)).is_none());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.hole(bytes.len() as u64)
    }

    fn hole(&mut self, length: u64) -> Result<(), SinkError> {
        self.open.as_mut().expect("a file was begun").1 += length;
        Ok(())
    }

    fn finish(&mut self) -> Result<u32, SinkError> {
        let (size, written) = self.open.take().expect("a file was begun");
        assert_eq!(size, written);
        self.files.push(Some(size));
        Ok(self.files.len() as u32 - 1)
    }

    fn discard(&mut self, content: u32) -> Result<(), SinkError> {
        assert!(self.files[content as usize].take().is_some(), "handed back twice");
        Ok(())
    }
}
