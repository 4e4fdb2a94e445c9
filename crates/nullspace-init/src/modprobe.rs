//! The kernel's helper: `/proc/1/exe -q -- NAME` loads the modules that go by that name. See `modules`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::kmod::init_module;

use crate::modules;

/// The largest module, unpacked; Debian's largest has 5 MiB.
const MAX_MODULE: u64 = 64 << 20;

/// What the kernel asks for when it runs this program as its helper; `None` when it is run as something else.
pub fn asked(arguments: &[String]) -> Option<&str> {
    match arguments {
        [program, options @ .., name]
            if program == modules::HELPER && options.iter().all(|word| word.starts_with('-')) =>
        {
            Some(name)
        }
        _ => None,
    }
}

/// Loads the modules of this name or alias with all that they need. False when there is none, or it cannot be loaded.
pub fn load(name: &str) -> bool {
    let loaded = || -> io::Result<bool> {
        let store = modules::store()?;
        let index = Index::read(Path::new(&store))?;
        let found = index.modules(name);
        for module in &found {
            for file in index.order(module) {
                insert(&Path::new(&store).join(file))?;
            }
        }
        Ok(!found.is_empty())
    };
    loaded().unwrap_or_else(|error| {
        // Its own: PID 1's log is not open in this process.
        crate::log::open();
        crate::log::problem(format_args!("module {name}: {error}"));
        false
    })
}

fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?;
        decoder.take(MAX_MODULE).read_to_end(&mut bytes)?;
    } else {
        file.take(MAX_MODULE).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn insert(path: &Path) -> io::Result<()> {
    match init_module(&unpacked(path)?, c"") {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(error) => Err(io::Error::other(format!("{}: {error}", path.display()))),
    }
}

/// The files of depmod(8).
#[derive(Debug, Default)]
struct Index {
    /// `file: what it needs, the nearest first`
    needs: String,
    /// `alias pattern module`
    aliases: String,
    /// `softdep module pre: … post: …`
    soft: String,
}

impl Index {
    fn read(store: &Path) -> io::Result<Index> {
        let text = |name: &str| std::fs::read_to_string(store.join(name));
        let (needs, aliases) = (text("modules.dep")?, text("modules.alias")?);
        Ok(Index { needs, aliases, soft: text("modules.softdep").unwrap_or_default() })
    }

    /// Names of the modules that go by `name`: the one that is called so, or all that have it as an alias.
    fn modules(&self, name: &str) -> Vec<String> {
        let name = plain(name);
        if self.line(&name).is_some() {
            return vec![name];
        }
        let mut found: Vec<String> = Vec::new();
        for line in self.aliases.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next())
                && matches(plain(pattern).as_bytes(), name.as_bytes())
                && !found.iter().any(|known| known == module)
            {
                found.push(plain(module));
            }
        }
        found
    }

    fn line(&self, module: &str) -> Option<(&str, &str)> {
        self.needs.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| name_of(file) == module)
    }

    /// Files to load, in that order, the module's own last.
    fn order(&self, module: &str) -> Vec<String> {
        let Some((file, needs)) = self.line(module) else { return Vec::new() };
        let mut order: Vec<String> = Vec::new();
        for line in self.soft.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("softdep") && words.next().is_some_and(|name| plain(name) == module) {
                let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| !word.ends_with(':'));
                // One level: what they wish for themselves is theirs.
                for (file, needs) in before.filter_map(|name| self.line(&plain(name))) {
                    order.extend(needs.split_whitespace().rev().map(str::to_owned));
                    order.push(file.to_owned());
                }
            }
        }
        order.extend(needs.split_whitespace().rev().map(str::to_owned));
        order.push(file.to_owned());
        order
    }
}

/// A module's name from its file's: `kernel/net/veth.ko.zst` is `veth`.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    plain(name.split(".ko").next().unwrap_or(name))
}

/// Dashes and underscores are the same in names of modules.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// A pattern of fnmatch(3) with `*` and `?`, which is all that aliases use for what the kernel asks for by name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || name.get(from) == Some(byte) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, from) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            needs: "kernel/nft_chain_nat.ko.zst: kernel/nf_nat.ko.zst kernel/nf_conntrack.ko.zst kernel/nf_tables.ko.zst\n\
                kernel/nf_nat.ko.zst: kernel/nf_conntrack.ko.zst\nkernel/nf_conntrack.ko.zst:\nkernel/nf_tables.ko.zst:\n\
                kernel/dm-mod.ko.zst:\nkernel/veth.ko.zst:\n"
                .into(),
            aliases: "# Aliases\nalias nft_chain_2_nat nft_chain_nat\nalias nft_chain_10_nat nft_chain_nat\n\
                alias rtnl_link_veth veth\nalias block_major_9_* dm_mod\nalias char-major-10-2?6 dm_mod\n"
                .into(),
            soft: "softdep veth pre: dm_mod nothing post: nf_tables\n".into(),
        }
    }

    #[test]
    fn modules_are_found_by_name_and_alias_with_all_that_they_need() {
        let index = index();
        for (asked, found) in [
            ("nft-chain-2-nat", vec!["nft_chain_nat"]),
            ("rtnl-link-veth", vec!["veth"]),
            ("nf_nat", vec!["nf_nat"]),
            ("nf-nat", vec!["nf_nat"]),
            ("dm_mod", vec!["dm_mod"]),
            ("block-major-9-0", vec!["dm_mod"]),
            ("char-major-10-236", vec!["dm_mod"]),
            ("char-major-10-237", vec![]),
            ("nft-chain-3-nat", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(index.modules(asked), found, "{asked}");
        }
        let order = ["kernel/nf_tables.ko.zst", "kernel/nf_conntrack.ko.zst", "kernel/nf_nat.ko.zst"];
        let mut with_own: Vec<&str> = order.to_vec();
        with_own.push("kernel/nft_chain_nat.ko.zst");
        assert_eq!(index.order("nft_chain_nat"), with_own);
        assert_eq!(index.order("veth"), ["kernel/dm-mod.ko.zst", "kernel/veth.ko.zst"]);
        assert!(index.order("none").is_empty());
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "", false),
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a*b*c", "axbybzc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a**", "a", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn only_the_kernels_call_is_a_call_for_modules() {
        let of =
            |words: &[&str]| asked(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).map(str::to_owned);
        assert_eq!(of(&["/proc/1/exe", "-q", "--", "fs-overlay"]).as_deref(), Some("fs-overlay"));
        for none in [&["/init"][..], &["/proc/1/exe"], &["modprobe", "-q", "--", "x"], &["/proc/1/exe", "x", "y"], &[]]
        {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ko.zst");
        // What zstd(1) makes of `hello` and a line end.
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x31, 0, 0];
        let frame = [&head[..], b"hello\n", &[0x53, 0x88, 0xbd, 0x91]].concat();
        std::fs::write(&path, &frame).unwrap();
        assert_eq!(unpacked(&path).unwrap(), b"hello\n");
        let plain = folder.path().join("x.ko");
        std::fs::write(&plain, &frame).unwrap();
        assert_eq!(unpacked(&plain).unwrap(), frame);
        std::fs::write(&path, "no frame").unwrap();
        assert!(unpacked(&path).is_err());
    }
}
