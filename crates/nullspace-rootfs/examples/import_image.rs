//! One import, whole, as the service does it; and the floor under every importer. `make bench-import` runs both.
//!
//! ```text
//! import_image layout LAYOUT IMAGE MIB        from an OCI image layout, as skopeo makes one
//! import_image registry REFERENCE IMAGE MIB   from a registry; those on loopback are spoken to in plain HTTP
//! import_image tar TAR IMAGE MIB              from a root tree's tar
//! import_image floor LAYOUT                   the same blobs decompressed, blob and tar hashed, and nothing else
//! ```
//! IMAGE must not exist. Nothing is synced. The last line of an import is `peak N kB`, its largest resident size.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use nullspace_ext4::Options;
use nullspace_oci::digest::Algorithm;
use nullspace_oci::import::{ImportOptions, import, import_local, import_tar};
use nullspace_oci::layout::Layout;
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, Registry, RegistryConfig};
use nullspace_oci::stream::Decoder;
use nullspace_rootfs::Written;
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PIECE: usize = 256 << 10;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let platform = Platform::host().ok_or("no images for this machine")?;
    match arguments[..] {
        ["floor", layout] => floor(Path::new(layout), platform),
        ["layout", layout, image, mib] => {
            let layout = Layout::open(Path::new(layout))?.resolve(platform, None)?;
            let (sink, writing) = begin(image, mib)?;
            let imported = import_local(&layout, sink, &ImportOptions::default()).map(|imported| imported.tree);
            say(writing.finish(imported.map_err(Into::<Box<dyn Error + Send + Sync>>::into))?)
        }
        ["tar", tar, image, mib] => {
            let (sink, writing) = begin(image, mib)?;
            let imported = import_tar(File::open(tar)?, sink, &ImportOptions::default()).map(|imported| imported.tree);
            say(writing.finish(imported.map_err(Into::<Box<dyn Error + Send + Sync>>::into))?)
        }
        ["registry", reference, image, mib] => {
            // An error means that there is a provider already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let (sink, writing) = begin(image, mib)?;
            let spool = Path::new(image).parent().map(Path::to_owned);
            let imported: Outcome<_> = runtime.block_on(async {
                // The registry of a measurement is on loopback.
                let private_registries = vec!["127.0.0.1".parse()?];
                let registry = Registry::new(RegistryConfig { private_registries, ..RegistryConfig::default() })?;
                let repository = registry.repository(&reference.parse()?, Credentials::Anonymous)?;
                let resolved = repository.resolve(platform).await?;
                let options = ImportOptions { spool_directory: spool, ..ImportOptions::default() };
                Ok(import(&repository, &resolved, sink, options).await?.tree)
            });
            say(writing.finish(imported)?)
        }
        _ => Err("usage: import_image floor LAYOUT | layout LAYOUT IMAGE MIB | tar TAR IMAGE MIB | registry REFERENCE IMAGE MIB".into()),
    }
}

fn begin(image: &str, mib: &str) -> Outcome<(nullspace_rootfs::Sink, nullspace_rootfs::Writing)> {
    let size = mib.parse::<u64>()?.checked_mul(1 << 20).ok_or("too large")?;
    let options = Options::new(size, Uuid::from_u128(1), Uuid::from_u128(2), Default::default());
    let file = File::options().read(true).write(true).create_new(true).open(image)?;
    Ok(nullspace_rootfs::begin(file, options, ())?)
}

fn say(written: Written) -> Outcome<()> {
    println!("{} entries, {} MiB of contents", written.entries, written.content_bytes >> 20);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    println!("peak {}", peak.trim());
    Ok(())
}

/// One thread decompresses, another hashes both sides of it: what no importer that checks what it takes can do without.
fn floor(layout: &Path, platform: Platform) -> Outcome<()> {
    let image = Layout::open(layout)?.resolve(platform, None)?;
    let (sender, pieces) = sync_channel::<Piece>(16);
    let blobs: Vec<_> = image.layers.iter().map(|layer| layout.join("blobs/sha256").join(layer.digest.hex())).collect();
    let (used, empty) = sync_channel::<Vec<u8>>(18);
    let decode = std::thread::spawn(move || -> Outcome<()> {
        for blob in blobs {
            let source = Copied { inner: BufReader::with_capacity(PIECE, File::open(blob)?), copy: sender.clone() };
            let mut decoder = Decoder::detect(source)?;
            loop {
                let mut piece = empty.try_recv().unwrap_or_default();
                piece.resize(PIECE, 0);
                let mut length = 0;
                while length < PIECE {
                    match decoder.read(&mut piece[length..])? {
                        0 => break,
                        read => length += read,
                    }
                }
                piece.truncate(length);
                if length == 0 {
                    break;
                }
                sender.send(Piece::Tar(piece))?;
            }
            sender.send(Piece::End)?;
        }
        Ok(())
    });
    let mut digests = Vec::new();
    let hasher = || Algorithm::Sha256.hasher();
    let (mut blob, mut tar) = (hasher(), hasher());
    for piece in pieces {
        match piece {
            Piece::Blob(bytes) => blob.update(&bytes),
            Piece::Tar(bytes) => {
                tar.update(&bytes);
                let _ = used.try_send(bytes);
            }
            Piece::End => digests.push((
                std::mem::replace(&mut blob, hasher()).finish(),
                std::mem::replace(&mut tar, hasher()).finish(),
            )),
        }
    }
    decode.join().map_err(|_| "the decoder panicked")??;
    for (layer, (blob, tar)) in image.layers.iter().zip(&digests) {
        if *blob != layer.digest || *tar != layer.diff_id {
            return Err("a layer is not what its digest says".into());
        }
    }
    println!("{} layers", digests.len());
    Ok(())
}

enum Piece {
    Blob(Vec<u8>),
    Tar(Vec<u8>),
    End,
}

/// Hands a copy of what is read to the hashing thread.
struct Copied {
    inner: BufReader<File>,
    copy: std::sync::mpsc::SyncSender<Piece>,
}

impl Read for Copied {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.fill_buf()?.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.inner.buffer()[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Copied {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.inner.buffer().is_empty() {
            let bytes = self.inner.fill_buf()?.to_vec();
            if !bytes.is_empty() {
                self.copy.send(Piece::Blob(bytes)).map_err(std::io::Error::other)?;
            }
        }
        Ok(self.inner.buffer())
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}
