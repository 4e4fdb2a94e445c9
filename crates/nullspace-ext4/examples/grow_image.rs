//! Enlarges an image, as `truncate` and `resize2fs` would.
//!
//! ```text
//! cargo run --release -p nullspace-ext4 --example grow_image <image> <MiB>
//! ```

use std::error::Error;
use std::fs::File;

use nullspace_ext4::grow;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, mebibytes] = &arguments[..] else {
        return Err("usage: grow_image <image> <MiB>".into());
    };
    let size = mebibytes.parse::<u64>()?.checked_mul(1 << 20).ok_or("too large")?;
    let superblock = grow(&File::options().read(true).write(true).open(image)?, size)?;
    println!("{} of {} bytes free", superblock.free_bytes(), superblock.size_bytes());
    Ok(())
}
