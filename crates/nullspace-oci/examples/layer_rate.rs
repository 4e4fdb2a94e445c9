//! How fast layers are decoded, checked and merged, against the floor: the same blobs decoded and hashed, nothing else.
//!
//! `layer_rate LAYOUT [REFERENCE]`: an OCI image layout as `skopeo copy … oci:LAYOUT` makes one, and the same image in a
//! registry, which then is pulled from too. All are measured in turn, several
//! times, in one run; the ratio of the medians is what counts. File content goes to an unlinked temporary file.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nullspace_oci::digest::Algorithm;
use nullspace_oci::import::{ImportOptions, import, import_local};
use nullspace_oci::layout::Layout;
use nullspace_oci::merge::{ContentSink, SinkError};
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, Registry, RegistryConfig};
use nullspace_oci::stream::Decoder;

const ROUNDS: usize = 5;
const MIB: f64 = 1_048_576.0;

/// Appends all content to one file and remembers where.
struct FileSink {
    file: File,
    end: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl FileSink {
    fn new() -> std::io::Result<FileSink> {
        Ok(FileSink { file: tempfile::tempfile()?, end: 0, start: 0, buffer: Vec::new() })
    }
}

impl ContentSink for FileSink {
    type Content = (u64, u64);

    fn begin(&mut self, _: u64) -> Result<(), SinkError> {
        self.start = self.end + self.buffer.len() as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= 1 << 20 {
            self.file.write_all_at(&self.buffer, self.end)?;
            self.end += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(u64, u64), SinkError> {
        Ok((self.start, self.end + self.buffer.len() as u64 - self.start))
    }
}

/// Decode on one thread, both hashes on another: no less can be done.
fn floor(paths: &[PathBuf]) -> Result<(u64, u64), Box<dyn Error + Send + Sync>> {
    let (mut compressed, mut uncompressed) = (0, 0);
    for path in paths {
        let (pieces, decoded) = std::sync::mpsc::sync_channel::<Vec<u8>>(8);
        let blob = path.clone();
        let decode = std::thread::spawn(move || -> std::io::Result<()> {
            let mut decoder = Decoder::detect(BufReader::with_capacity(256 << 10, File::open(blob)?))?;
            loop {
                let mut piece = Vec::with_capacity(256 << 10);
                decoder.by_ref().take(256 << 10).read_to_end(&mut piece)?;
                if piece.is_empty() || pieces.send(piece).is_err() {
                    return Ok(());
                }
            }
        });
        let mut hasher = Algorithm::Sha256.hasher();
        let mut blob = BufReader::with_capacity(256 << 10, File::open(path)?);
        loop {
            let length = {
                let buffer = blob.fill_buf()?;
                hasher.update(buffer);
                buffer.len()
            };
            if length == 0 {
                break;
            }
            compressed += length as u64;
            blob.consume(length);
        }
        hasher.finish();
        let mut hasher = Algorithm::Sha256.hasher();
        for piece in decoded {
            hasher.update(&piece);
            uncompressed += piece.len() as u64;
        }
        decode.join().map_err(|_| "the decoder panicked")??;
        hasher.finish();
    }
    Ok((compressed, uncompressed))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let layout = std::env::args().nth(1).ok_or("usage: layer_rate LAYOUT [REFERENCE]")?;
    let layout = Path::new(&layout);
    let platform = Platform::host().ok_or("no images for this machine")?;
    let image = Layout::open(layout)?.resolve(platform, None)?;
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest);
    let paths: Vec<PathBuf> = image.layers.iter().map(|layer| blob(layer.digest.hex())).collect();
    let reference = std::env::args().nth(2).map(|text| text.parse()).transpose()?;
    let (mut floors, mut merges, mut pulls) = (Vec::new(), Vec::new(), Vec::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The registry of a measurement is on loopback.
    let private_registries = vec!["127.0.0.1".parse()?];
    let registry = Registry::new(RegistryConfig { private_registries, ..RegistryConfig::default() })?;
    let (compressed, uncompressed) = floor(&paths)?;
    let mut entries = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        floor(&paths)?;
        floors.push(begun.elapsed().as_secs_f64());

        let begun = Instant::now();
        let sink = FileSink::new()?;
        let imported = import_local(&image, sink, &ImportOptions::default())?;
        merges.push(begun.elapsed().as_secs_f64());
        entries = imported.tree.entries().len();

        if let Some(reference) = &reference {
            let begun = Instant::now();
            let sink = FileSink::new()?;
            let spool = std::env::temp_dir();
            runtime.block_on(async {
                let repository = registry.repository(reference, Credentials::Anonymous)?;
                let image = repository.resolve(platform).await?;
                let options = ImportOptions { spool_directory: Some(spool), ..ImportOptions::default() };
                import(&repository, &image, sink, options).await?;
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            })?;
            pulls.push(begun.elapsed().as_secs_f64());
        }
    }
    let (floor, merge) = (median(floors), median(merges));
    let size = uncompressed as f64 / MIB;
    println!("{entries} entries, {:.0} MiB compressed, {size:.0} MiB uncompressed", compressed as f64 / MIB);
    println!("floor {floor:.3} s, {:.0} MiB/s; merge {merge:.3} s, {:.0} MiB/s", size / floor, size / merge);
    println!("bench: merge_over_floor {:.2} ratio", merge / floor);
    if !pulls.is_empty() {
        println!("bench: pull_over_floor {:.2} ratio", median(pulls) / floor);
    }
    Ok(())
}
