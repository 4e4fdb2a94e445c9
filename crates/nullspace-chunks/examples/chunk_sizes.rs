//! How chunk size and compression trade room for time: `chunk_sizes IMAGE [CHANGED]`.
//!
//! `IMAGE` is a raw root image. `CHANGED`, if given, is a copy of it that something was written to; what differs is found
//! by comparing. Each setting stores both in a fresh store and writes `CHANGED` back. For each the room on the disk (of
//! `CHANGED`: what it adds), and the time to store and to write back, without flushing what was written back. Times are
//! medians of three runs. `bench-store` in the Makefile makes the images and runs this.

mod compared;

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use compared::Compared;
use nullspace_chunks::{Changes, Extent, Settings, Stop, Store};

const ROUNDS: usize = 3;
const MIB: f64 = 1_048_576.0;

/// One run's figures.
#[derive(Clone, Copy)]
struct Figures {
    image_mib: f64,
    change_mib: f64,
    put_ms: f64,
    change_ms: f64,
    materialise_ms: f64,
    content_mib: f64,
}

fn run(settings: Settings, image: &File, changed: Option<&Compared>) -> Result<Figures, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), settings)?;
    let stop = Stop::default();
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1000.0;

    let began = Instant::now();
    let mut stored = store.put_image(image, &stop)?;
    let put_ms = ms(began);
    let content_mib = stored.put.content_bytes as f64 / MIB;
    let image_bytes = store.disk_bytes()?;
    let began = Instant::now();
    if let Some(changed) = changed {
        stored = store.put_changes(stored.id(), changed, Some(image), &stop)?;
    }
    let change_ms = ms(began);
    let change_bytes = store.disk_bytes()? - image_bytes;
    let back = tempfile::tempfile_in(dir.path())?;
    let began = Instant::now();
    store.materialise(stored.id(), &back, None, &stop)?;
    let materialise_ms = ms(began);
    Ok(Figures {
        image_mib: image_bytes as f64 / MIB,
        change_mib: change_bytes as f64 / MIB,
        put_ms,
        change_ms,
        materialise_ms,
        content_mib,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1);
    let image = File::open(paths.next().ok_or("usage: chunk_sizes IMAGE [CHANGED]")?)?;
    let changed = paths.next().map(|path| Compared::new(&image, File::open(path)?)).transpose()?;
    if let Some(changed) = &changed {
        let blocks: u64 = changed.extents().iter().map(|extent| extent.len / compared::BLOCK as u64).sum();
        println!("changed: {blocks} blocks in {} extents", changed.extents().len());
    }
    println!("chunk KiB | zstd | image MiB | change MiB | put ms | change ms | write back ms | write back MiB/s");
    for chunk_kib in [4, 16, 64, 256] {
        for level in [0, 1, 3] {
            let settings = Settings { chunk_bytes: chunk_kib << 10, level, ..Settings::default() };
            let runs: Vec<Figures> =
                (0..ROUNDS).map(|_| run(settings, &image, changed.as_ref())).collect::<Result<_, _>>()?;
            let median = |of: fn(&Figures) -> f64| {
                let mut all: Vec<f64> = runs.iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                all[ROUNDS / 2]
            };
            let back = median(|run| run.materialise_ms);
            println!(
                "{chunk_kib:9} | {level:4} | {:9.1} | {:10.3} | {:6.0} | {:9.1} | {back:13.0} | {:16.0}",
                median(|run| run.image_mib),
                median(|run| run.change_mib),
                median(|run| run.put_ms),
                median(|run| run.change_ms),
                median(|run| run.content_mib) / back * 1000.0,
            );
        }
    }
    Ok(())
}
