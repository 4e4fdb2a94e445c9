//! Any sequence of calls gives an error or an image that e2fsck has nothing to say about.
#![no_main]

use std::process::Command;

use libfuzzer_sys::fuzz_target;
use nullspace_ext4::{Error, ImageWriter, Meta, NodeId, Options, Timestamp, Tree};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCKS: [u64; 8] = [2048, 2049, 4096, 5000, 32767, 32769, 33500, 70_000];

fuzz_target!(|bytes: &[u8]| {
    let _ = write(Input(bytes));
});

fn write(mut input: Input<'_>) -> Result<(), Error> {
    let size = BLOCKS[usize::from(input.byte() % 8)] * 4096 + u64::from(input.byte());
    let mut options = Options::new(size, Uuid::from_u128(1), Uuid::from_u128(input.byte().into()), input.time());
    options.bytes_per_inode = u32::from(input.byte()) << 8;
    options.spare_inodes = input.byte().into();
    // In the past of e2fsck's clock, which finds nothing wrong with that.
    options.time.seconds = options.time.seconds.clamp(0, 1_700_000_000);
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("there is a /dev/shm");
    let mut writer = ImageWriter::create(file.reopen().expect("it can be opened"), options)?;
    let mut tree = Tree::new(input.meta())?;
    let mut nodes = vec![Tree::ROOT];
    while !input.0.is_empty() {
        // What fails is left out, as an importer that reports errors and goes on would do it.
        let _ = step(&mut input, &mut writer, &mut tree, &mut nodes);
    }
    match writer.finish(tree) {
        Ok(summary) => {
            assert_eq!(summary.size_bytes, size);
            let output = Command::new("e2fsck").arg("-fn").arg(file.path()).output().expect("there is an e2fsck");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            Ok(())
        }
        Err(Error::TooSmall { size_bytes, needed_bytes }) => {
            assert!(size_bytes == size && needed_bytes > size && needed_bytes.is_multiple_of(MIB));
            Ok(())
        }
        Err(error) => panic!("{error}"),
    }
}

fn step(
    input: &mut Input<'_>,
    writer: &mut ImageWriter,
    tree: &mut Tree,
    nodes: &mut Vec<NodeId>,
) -> Result<(), Error> {
    let parent = input.node(nodes);
    match input.byte() % 10 {
        0 | 1 => nodes.push(tree.add_dir(parent, input.name(), input.meta())?),
        2..=5 => {
            let fate = input.byte();
            let mut file = writer.begin_file();
            for _ in 0..input.byte() % 16 {
                let length = usize::from(input.word());
                match input.byte() % 4 {
                    0 => file.push_hole(u64::from(input.word()) << (input.byte() % 40))?,
                    1 => file.push(&vec![0; length])?,
                    _ => file.push(&vec![1; length])?,
                }
            }
            if fate == 0 {
                return Ok(());
            }
            let data = file.finish()?;
            if fate > 1 {
                nodes.push(tree.add_file(parent, input.name(), input.meta(), data)?);
            }
        }
        6 => {
            let target = vec![b't'; usize::from(input.word() % 4200)];
            nodes.push(tree.add_symlink(parent, input.name(), input.meta(), &target)?);
        }
        7 => {
            let existing = input.node(nodes);
            tree.link(parent, input.name(), existing)?;
        }
        8 => {
            tree.remove(parent, input.name());
        }
        _ => {
            // Many names at once, for directories of more than one block.
            let prefix = input.byte();
            for number in 0..input.word() % 3000 {
                tree.add_symlink(parent, format!("{prefix}-{number}").as_bytes(), Meta::default(), b"x")?;
            }
        }
    }
    Ok(())
}

/// Takes values off the fuzzer's bytes; behind their end everything is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn name(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        // Short names collide and nest more often.
        self.bytes(if length < 240 { length % 8 } else { length + 10 })
    }

    fn node(&mut self, nodes: &[NodeId]) -> NodeId {
        nodes[usize::from(self.byte()) % nodes.len()]
    }

    fn time(&mut self) -> Timestamp {
        let seconds = i64::from(self.word() as i16) << (self.byte() % 48);
        Timestamp { seconds, nanoseconds: u32::from(self.word()) << 16 }
    }

    fn meta(&mut self) -> Meta {
        let mut xattrs = Vec::new();
        for _ in 0..self.byte() % 4 {
            let prefix: &[u8] = match self.byte() % 6 {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                3 => b"system.posix_acl_access",
                4 => b"system.posix_acl_default",
                _ => b"",
            };
            let name = if prefix.starts_with(b"system") { prefix.to_vec() } else { [prefix, self.name()].concat() };
            let value = match self.byte() {
                long @ 250.. => vec![7; usize::from(long - 249) * 700],
                short => self.bytes(short.into()).to_vec(),
            };
            xattrs.push((name, value));
        }
        Meta { mode: self.word(), uid: self.word().into(), gid: u32::MAX, mtime: self.time(), xattrs }
    }
}
