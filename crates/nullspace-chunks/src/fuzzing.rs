//! Checks of hostile manifests and packs, for the fuzz targets in `fuzz/`: the types that they are about are private.
//!
//! ```text
//!   bytes ── decode ──> refused, or: invariants hold, and encode ── decode ──> the same
//! ```
//! Only with the feature `fuzzing`, and in tests.

use std::io::Write;

use crate::codec::{Decoder, Encoder, MAX_CHUNK};
use crate::manifest::{Content, Manifest, Piece, overlay};
use crate::pack::{ENTRY, TAIL, read_index};
use crate::{ChunkId, ManifestId};

/// Most bytes of chunks that one input makes the decoder unpack.
const UNPACKED: usize = 4 << 20;

/// Reads two manifests and lays the second over the first. `bytes`: the first one's length (u16, little-endian), the first,
/// the second.
///
/// # Panics
/// When a manifest is accepted that breaks an invariant.
pub fn manifest(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (below, above) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let (below, above) = (checked_manifest(below), checked_manifest(above));
    let (Some(below), Some(above)) = (below, above) else { return };
    let all = overlay(&below.pieces, &above.pieces);
    sorted(&all, below.bytes.max(above.bytes));
    // Each byte that the upper one has is the upper one's.
    for piece in &above.pieces {
        let found = all.iter().find(|found| found.at <= piece.at && found.end() > piece.at);
        assert_eq!(found.map(|found| found.chunk()), Some(piece.chunk()), "{piece:?} is hidden");
    }
    assert!(all.len() <= below.pieces.len() + 2 * above.pieces.len());
}

fn checked_manifest(bytes: &[u8]) -> Option<Manifest> {
    let manifest = Manifest::decode(bytes).ok()?;
    sorted(&manifest.pieces, manifest.bytes);
    let written = manifest.encode().expect("it was as long before");
    assert_eq!(written.len(), bytes.len());
    assert_eq!(Manifest::decode(&written).expect("it was written by us"), manifest);
    Some(manifest)
}

fn sorted(pieces: &[Piece], bytes: u64) {
    let mut end = 0;
    for piece in pieces {
        assert!(piece.len > 0 && piece.at >= end, "{piece:?} after {end}");
        end = piece.at.checked_add(piece.len.into()).expect("it ends within 64 bits");
        if let Content::Chunk { skip, .. } = piece.content {
            assert!(skip.checked_add(piece.len).is_some_and(|whole| whole <= MAX_CHUNK), "{piece:?}");
        }
    }
    assert!(end <= bytes, "{end} of {bytes}");
}

/// Reads a pack. `bytes`: a mode, then the pack. With an odd mode the index gets its right place, count and checksum first,
/// which random bytes never have; the mode's other bits are how many entries the index is said to have.
///
/// # Panics
/// When an index is accepted that breaks an invariant, or a chunk is unpacked to another length than the index says.
pub fn pack(bytes: &[u8]) {
    let Some((mode, pack)) = bytes.split_first() else { return };
    let mut pack = pack.to_vec();
    if mode & 1 != 0 {
        seal(&mut pack, usize::from(mode >> 1));
    }
    let mut file = tempfile().expect("there is memory for a file");
    file.write_all(&pack).expect("there is memory for a file");
    let Ok((entries, length)) = read_index(&file) else { return };
    assert_eq!(length, pack.len() as u64);
    let mut decoder = Decoder::new().expect("there is memory for zstd");
    let (mut end, mut unpacked, mut plain) = (8, 0, Vec::new());
    for entry in entries {
        assert!(entry.stored <= entry.plain && entry.plain <= MAX_CHUNK && entry.offset == end, "{entry:?}");
        end = entry.offset + u64::from(entry.stored);
        assert!(end <= length - TAIL as u64, "{entry:?}");
        unpacked += entry.plain as usize;
        if unpacked > UNPACKED {
            break;
        }
        let stored = &pack[entry.offset as usize..][..entry.stored as usize];
        if decoder.decode(stored, entry.plain as usize, &mut plain).is_ok() {
            assert_eq!(plain.len(), entry.plain as usize);
        }
    }
}

/// Writes an index's tail over the end of `pack`.
fn seal(pack: &mut [u8], entries: usize) {
    let Some(tail) = pack.len().checked_sub(TAIL) else { return };
    let Some(index) = entries.checked_mul(ENTRY).and_then(|size| tail.checked_sub(size)) else { return };
    let hash = blake3::hash(&pack[index..tail]);
    let sealed = [
        &(index as u64).to_le_bytes()[..],
        &(entries as u32).to_le_bytes(),
        &[0; 4],
        hash.as_bytes(),
        crate::pack::MAGIC,
    ];
    pack[tail..].copy_from_slice(&sealed.concat());
}

fn tempfile() -> std::io::Result<std::fs::File> {
    let name = rustix::fs::memfd_create("pack", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(name.into())
}

/// Inputs of [`manifest`] to begin with.
pub fn manifest_seeds() -> Vec<Vec<u8>> {
    let chunk = |at, len, byte: u8, skip| Piece { at, len, content: Content::Chunk { id: ChunkId::of(&[byte]), skip } };
    let zeros = |at, len| Piece { at, len, content: Content::Zeros };
    let written = |bytes, depth, pieces: &[Piece]| {
        let parent = (depth > 0).then(|| ManifestId::of(b"parent"));
        Manifest { bytes, parent, depth, pieces: pieces.to_vec() }.encode().expect("it is small")
    };
    let empty = written(0, 0, &[]);
    let base = written(300, 0, &[chunk(0, 100, 1, 0), chunk(120, 80, 2, 7), zeros(200, 100)]);
    let child = written(400, 1, &[zeros(20, 10), chunk(90, 60, 3, 0), chunk(250, 150, 4, 9)]);
    let inside = written(300, 8, &[chunk(10, 5, 5, 0), chunk(15, 5, 5, 5), chunk(60, 5, 6, 0)]);
    let pair = |below: &[u8], above: &[u8]| [&(below.len() as u16).to_le_bytes(), below, above].concat();
    vec![pair(&empty, &base), pair(&base, &child), pair(&base, &inside), pair(&child, &inside), pair(&child, &base)]
}

/// Inputs of [`pack`] to begin with.
pub fn pack_seeds() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 4] = [b"one", &[7; 4000], &[0; 70_000], b"three hundred"];
    let seed = |mode: u8, level, texts: &[&[u8]]| {
        let mut encoder = Encoder::new(level).expect("there is memory for zstd");
        let mut pack = [&[mode][..], crate::pack::MAGIC].concat();
        let mut index = Vec::new();
        for text in texts {
            let stored = encoder.encode(text).expect("it is small");
            index.extend_from_slice(ChunkId::of(text).as_bytes());
            index.extend_from_slice(&(stored.len() as u32).to_le_bytes());
            index.extend_from_slice(&(text.len() as u32).to_le_bytes());
            pack.extend_from_slice(&stored);
        }
        pack.extend_from_slice(&index);
        pack.resize(pack.len() + TAIL, 0);
        seal(&mut pack[1..], texts.len());
        pack
    };
    vec![seed(0, 1, &texts), seed(9, 1, &texts), seed(5, 0, &[b"a", b"bc"]), seed(1, 1, &[])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checks_hold_for_the_seeds_and_for_each_byte_changed() {
        for (check, seeds) in [(manifest as fn(&[u8]), manifest_seeds()), (pack, pack_seeds())] {
            for seed in seeds {
                check(&seed);
                for at in 0..seed.len().min(600) {
                    let mut changed = seed.clone();
                    changed[at] ^= 1 << (at % 8);
                    check(&changed);
                }
            }
        }
    }

    #[test]
    fn seeds_are_read() {
        for seed in manifest_seeds() {
            let below = usize::from(u16::from_le_bytes([seed[0], seed[1]]));
            assert!(checked_manifest(&seed[2..][..below]).is_some() && checked_manifest(&seed[2 + below..]).is_some());
        }
        for seed in pack_seeds() {
            let mut file = tempfile().unwrap();
            file.write_all(&seed[1..]).unwrap();
            read_index(&file).unwrap();
        }
    }
}
