//! What fuzz targets share: values and archives from a fuzzer's bytes.

pub mod archive;
pub mod input;
