//! How fast an image is written, against the floor: the same bytes written to a plain file.
//!
//! ```text
//! cargo run --release -p nullspace-ext4 --example write_speed [directory for the files]
//! ```
//! Two shapes: 64 files of 16 MiB, and 60,000 files of 1 to 32 KiB in 3,000 directories. Each is written three times,
//! image and plain file in turn; the best time of each counts. Nothing is synced, so this measures the program and the
//! page cache, not the disk.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nullspace_ext4::{ImageWriter, Meta, Options, Timestamp, Tree};
use uuid::Uuid;

const IMAGE_BYTES: u64 = 4 << 30;
const ROUNDS: usize = 3;

/// How much of a layer a decompressor hands over at a time.
const PIECE: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let bytes = noise(32 << 20);
    let large: Vec<usize> = vec![16 << 20; 64];
    let small: Vec<usize> = (0..60_000).map(|number| 1024 + number * 7919 % (31 << 10)).collect();
    for (shape, sizes) in [("64 files of 16 MiB", large), ("60,000 files of 1 to 32 KiB", small)] {
        let total: usize = sizes.iter().sum();
        let (mut image, mut floor) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            image = image.min(timed(|| write_image(&directory, &sizes, &bytes))?);
            floor = floor.min(timed(|| write_plain(&directory, &sizes, &bytes))?);
        }
        let speed = |time: Duration| total as f64 / 1e6 / time.as_secs_f64();
        println!(
            "{shape}: image {:.0} MB/s ({:.3} s), plain file {:.0} MB/s ({:.3} s), {:.2} x the floor",
            speed(image),
            image.as_secs_f64(),
            speed(floor),
            floor.as_secs_f64(),
            image.as_secs_f64() / floor.as_secs_f64()
        );
    }
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn write_image(directory: &Path, sizes: &[usize], bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let time = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let options = Options::new(IMAGE_BYTES, Uuid::from_u128(1), Uuid::from_u128(2), time);
    let mut writer = ImageWriter::create(tempfile::tempfile_in(directory)?, options)?;
    let mut tree = Tree::new(Meta { mode: 0o755, ..Meta::default() })?;
    let mut parent = Tree::ROOT;
    for (number, &size) in sizes.iter().enumerate() {
        if number % 20 == 0 {
            parent = tree.add_dir(Tree::ROOT, format!("dir{number}").as_bytes(), Meta::default())?;
        }
        let mut file = writer.begin_file();
        for piece in contents(bytes, number, size).chunks(PIECE) {
            file.push(piece)?;
        }
        let data = file.finish()?;
        tree.add_file(parent, format!("file{number}").as_bytes(), Meta::default(), data)?;
    }
    writer.finish(tree)?;
    Ok(())
}

fn write_plain(directory: &Path, sizes: &[usize], bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    let mut buffer = Vec::with_capacity(2 << 20);
    for (number, &size) in sizes.iter().enumerate() {
        for piece in contents(bytes, number, size).chunks(PIECE) {
            buffer.extend_from_slice(piece);
            if buffer.len() >= 1 << 20 {
                file.write_all(&buffer)?;
                buffer.clear();
            }
        }
    }
    file.write_all(&buffer)?;
    Ok(())
}

/// A stretch of the noise that differs from file to file.
fn contents(bytes: &[u8], number: usize, size: usize) -> &[u8] {
    let start = number * 4093 % (bytes.len() - size);
    &bytes[start..start + size]
}

/// Bytes without runs of zeros.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
