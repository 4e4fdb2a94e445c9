//! The half-MD4 hash by which indexed directories are sorted (kernel: `fs/ext4/hash.c`).

/// Where a name belongs in an indexed directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameHash {
    /// What the index holds. Its lowest bit is always clear: the index uses that bit to say "the run of equal hashes
    /// goes on from the block before".
    pub(crate) major: u32,
    /// Breaks ties of `major` for a reader that walks the directory in hash order.
    pub(crate) minor: u32,
}

/// Readers use this hash as their end mark, so no name may have it.
const END_OF_DIRECTORY: u32 = 0x7fff_ffff << 1;

const ROUND_2: u32 = 0x5a82_7999;
const ROUND_3: u32 = 0x6ed9_eba1;

/// Hashes names with the seed that the superblock tells every reader.
#[derive(Clone, Debug)]
pub(crate) struct NameHasher {
    seed: [u32; 4],
}

impl NameHasher {
    /// The hasher for `s_hash_seed`. A seed of zeros means MD4's own initial state.
    pub(crate) fn new(seed: &[u8; 16]) -> NameHasher {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(seed.chunks_exact(4)) {
            *word = crate::le::get_u32(bytes, 0);
        }
        if words == [0; 4] {
            words = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        }
        NameHasher { seed: words }
    }

    /// The hash of `name`, its bytes taken as signed (the superblock's flags say so, as on every x86 filesystem).
    pub(crate) fn hash(&self, name: &[u8]) -> NameHash {
        let mut state = self.seed;
        let mut rest = name;
        while !rest.is_empty() {
            transform(&mut state, &words_of(rest));
            rest = rest.get(32..).unwrap_or_default();
        }
        let mut major = state[1] & !1;
        if major == END_OF_DIRECTORY {
            major = END_OF_DIRECTORY - 2;
        }
        NameHash { major, minor: state[2] }
    }
}

/// The first 32 bytes of `rest`, as eight words filled up with its length.
fn words_of(rest: &[u8]) -> [u32; 8] {
    let length = rest.len() as u32;
    let half = length | length << 8;
    let padding = half | half << 16;
    let mut words = [padding; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        for &byte in bytes {
            // Sign extension is not a slip: this is the "signed" flavour of the hash.
            *word = i32::from(byte.cast_signed()).cast_unsigned().wrapping_add(*word << 8);
        }
    }
    words
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;

    let mut working = *state;
    round(&mut working, input, f, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&mut working, input, g, ROUND_2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&mut working, input, h, ROUND_3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (word, addend) in state.iter_mut().zip(working) {
        *word = word.wrapping_add(addend);
    }
}

fn round(
    state: &mut [u32; 4],
    input: &[u32; 8],
    mix: impl Fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; 8],
    shifts: [u32; 4],
) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (step, word) in order.into_iter().enumerate() {
        let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(input[word]).wrapping_add(constant);
        // Each step works on the next of the four registers; turning them round saves writing the step out four times.
        (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
    }
    *state = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from `debugfs -R "dx_hash -h half_md4 -s <seed> <name>"`.
    #[test]
    fn hashes_match_those_of_e2fsprogs() {
        let seed = [0x8b, 0xd5, 0xf1, 0xc8, 0x7f, 0x77, 0x4d, 0xe4, 0x8c, 0x26, 0xe1, 0x1e, 0x8a, 0x8a, 0xfa, 0x3a];
        let hasher = NameHasher::new(&seed);
        assert_eq!(hasher.hash(b"libc.so.6"), NameHash { major: 0x7e20_1f28, minor: 0x978d_ec49 });
        let long = b"a-name-of-more-than-thirty-two-bytes-takes-two-rounds-of-the-hash";
        assert_eq!(hasher.hash(long), NameHash { major: 0x67cd_c4a0, minor: 0xfe19_f814 });
        assert_eq!(NameHasher::new(&[0; 16]).hash(b"etc"), NameHash { major: 0x0cf6_5492, minor: 0xdc56_fef2 });
    }
}
