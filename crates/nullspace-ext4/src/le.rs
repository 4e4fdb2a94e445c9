//! Little-endian fields at fixed offsets of a fixed-size record, as ext4 has them everywhere.
//!
//! The offsets are constants of the format; a wrong one is a bug that the first test meets, not something an image can
//! cause.

/// Stores `value` at byte `offset`.
pub(crate) fn put_u16(record: &mut [u8], offset: usize, value: u16) {
    record[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

/// Stores `value` at byte `offset`.
pub(crate) fn put_u32(record: &mut [u8], offset: usize, value: u32) {
    record[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Stores the low and the high half of `value` at two places, as the fields that grew with the 64bit feature have it.
pub(crate) fn put_split_u32(record: &mut [u8], low: usize, high: usize, value: u32) {
    put_u16(record, low, value as u16);
    put_u16(record, high, (value >> 16) as u16);
}

/// Stores the low and the high half of `value` at two places.
pub(crate) fn put_split_u64(record: &mut [u8], low: usize, high: usize, value: u64) {
    put_u32(record, low, value as u32);
    put_u32(record, high, (value >> 32) as u32);
}

/// Reads the field at byte `offset`.
pub(crate) fn get_u16(record: &[u8], offset: usize) -> u16 {
    let mut bytes = [0; 2];
    bytes.copy_from_slice(&record[offset..offset + 2]);
    u16::from_le_bytes(bytes)
}

/// Reads the field at byte `offset`.
pub(crate) fn get_u32(record: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&record[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

/// Reads a 32-bit number whose halves lie at two places.
pub(crate) fn get_split_u32(record: &[u8], low: usize, high: usize) -> u32 {
    u32::from(get_u16(record, low)) | u32::from(get_u16(record, high)) << 16
}

/// Reads a 64-bit number whose halves lie at two places.
pub(crate) fn get_split_u64(record: &[u8], low: usize, high: usize) -> u64 {
    u64::from(get_u32(record, low)) | u64::from(get_u32(record, high)) << 32
}
