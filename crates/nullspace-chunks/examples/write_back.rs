//! How fast stored images are written back: `write_back STORE FOLDER [ROUNDS]`.
//!
//! `STORE` is the `chunks/` of a data folder that no service uses. Each image is written ROUNDS times (3) into a file in
//! `FOLDER`, as for a restore, and into memory. Prints medians in ms for each 100 MiB.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use nullspace_chunks::{Settings, Stop, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(store), Some(folder)) = (args.next(), args.next()) else {
        return Err("usage: write_back STORE FOLDER [ROUNDS]".into());
    };
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let store = Store::open(&PathBuf::from(store), Settings::default())?;
    println!("{:<12} {:>9} {:>9} {:>12} {:>12}", "image", "MiB", "written", "file, ms", "memory, ms");
    for id in store.manifests() {
        let (mut file_ms, mut memory_ms, mut size) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..rounds {
            for (times, file) in [
                (&mut file_ms, tempfile::tempfile_in(&folder)?),
                (&mut memory_ms, File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC)?)),
            ] {
                let began = Instant::now();
                let made = store.materialise(id, &file, None, &Stop::default())?;
                times.push(began.elapsed().as_secs_f64() * 1000.0);
                size = (made.image_bytes, made.written_bytes);
            }
        }
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] * 100.0 / mib(size.1).max(1.0)
        };
        let name: String = id.to_string().chars().take(12).collect();
        let (file, memory) = (median(&mut file_ms), median(&mut memory_ms));
        println!("{name:<12} {:>9.1} {:>9.1} {file:>12.1} {memory:>12.1}", mib(size.0), mib(size.1));
    }
    Ok(())
}
