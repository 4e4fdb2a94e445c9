//! Archives from the fuzzer's bytes.
//!
//! Of random bytes nearly none pass a tar header's checksum, so the bytes are read as orders to write an archive: headers
//! of each format with any field overwritten and sealed again, extended records, blocks as they are.

use crate::input::Input;

/// Names that collide, nest, and mean something to a merge.
pub const SHORT: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"a/b",
    b"a/c",
    b"a/b/c",
    b"b/a",
    b".wh.a",
    b".wh.b",
    b"a/.wh.b",
    b"a/b/.wh.c",
    b".wh..wh..opq",
    b"a/.wh..wh..opq",
    b"a/b/.wh..wh..opq",
    b"..",
    b"../a",
    b"a/..",
    b"./",
    b"/a",
    b"a/",
    b"",
    b".wh.",
    b"a/.wh..",
    b".wh..wh.plnk/1",
    b"a//b",
    b".",
    b"a/b/c/a/b",
    b"c/a",
];

const KEYS: &[&[u8]] = &[
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.security.capability",
    b"SCHILY.xattr.",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.realsize",
    b"GNU.sparse.size",
    b"GNU.sparse.map",
    b"GNU.sparse.offset",
    b"GNU.sparse.numbytes",
    b"comment",
];

const FLAGS: &[u8] = b"0511250005271\0SLKxgV346sM";

impl<'a> Input<'a> {
    fn name(&mut self) -> &'a [u8] {
        match self.byte() {
            long @ 240.. => self.bytes(usize::from(long) - 200),
            short @ 200.. => self.bytes(usize::from(short) - 200),
            known => SHORT[usize::from(known) % SHORT.len()],
        }
    }

    /// The next archive: up to the end of the bytes, or to an order that ends it.
    pub fn archive(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while !self.0.is_empty() {
            match self.byte() % 16 {
                0..=9 => self.entry(&mut out),
                10 | 11 => self.extended(&mut out),
                12 => self.long_name(&mut out),
                13 => out.resize(out.len() + 512, 0),
                14 => {
                    let length = usize::from(self.byte()) * 4;
                    out.extend_from_slice(self.bytes(length));
                }
                _ => break,
            }
        }
        out
    }

    fn entry(&mut self, out: &mut Vec<u8>) {
        let flag = FLAGS[usize::from(self.byte()) % FLAGS.len()];
        let (name, link) = (self.name(), if matches!(flag, b'1' | b'2') { self.name() } else { b"" });
        let length = if matches!(flag, b'1' | b'2' | b'5') { 0 } else { usize::from(self.byte()) };
        let data = self.bytes(length);
        self.header(out, flag, name, link, data);
    }

    fn header(&mut self, out: &mut Vec<u8>, flag: u8, name: &[u8], link: &[u8], data: &[u8]) {
        let mut block = [0_u8; 512];
        let cut = |bytes: &[u8]| bytes.len().min(100);
        block[..cut(name)].copy_from_slice(&name[..cut(name)]);
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = flag;
        block[157..157 + cut(link)].copy_from_slice(&link[..cut(link)]);
        let changes = self.byte();
        match changes % 4 {
            0 | 1 => block[257..265].copy_from_slice(b"ustar\x0000"),
            2 => block[257..265].copy_from_slice(b"ustar  \0"),
            _ => {}
        }
        for _ in 0..(changes / 4) % 8 {
            let at = usize::from(self.word()) % 512;
            block[at] = self.byte();
        }
        if changes < 250 {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        out.extend_from_slice(&block);
        out.extend_from_slice(data);
        if changes < 248 {
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }

    fn extended(&mut self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        for _ in 0..=self.byte() % 6 {
            let key = match self.byte() {
                own @ 240.. => self.bytes(usize::from(own) - 239),
                known => KEYS[usize::from(known) % KEYS.len()],
            };
            let length = usize::from(self.byte());
            let value = match length {
                0..=99 => self.name().to_vec(),
                100..=179 => self.word().to_string().into_bytes(),
                _ => self.bytes(length - 179).to_vec(),
            };
            let body = [b" ", key, b"=", &value, b"\n"].concat();
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            // Sometimes the length lies.
            let lie = if self.byte() == 255 { self.byte().into() } else { 0 };
            records.extend_from_slice(&[(length + lie).to_string().as_bytes(), &body].concat());
        }
        let flag = if self.byte() == 255 { b'g' } else { b'x' };
        self.header(out, flag, b"PaxHeaders/x", b"", &records);
    }

    fn long_name(&mut self, out: &mut Vec<u8>) {
        let flag = if self.byte() % 2 == 0 { b'L' } else { b'K' };
        let name = [self.name(), b"\0"].concat();
        self.header(out, flag, b"././@LongLink", b"", &name);
    }
}
