"""Lists a tar of one root tree: what Python's tarfile reads, a line for each name, names and attributes in hex."""

import decimal
import sys
import tarfile
import zlib

DIRECTORY, FILE, SYMLINK = 0o040000, 0o100000, 0o120000


def escaped(data):
    """As Rust's `escape_ascii`."""
    known = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x22: '\\"', 0x27: "\\'", 0x5C: "\\\\"}
    return "".join(known.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}") for byte in data)


def raw(text):
    return text.encode("utf-8", "surrogateescape")


nodes = {"": (DIRECTORY | 0o755, 0, 0, 0, 0, 0, "", "", {})}
with tarfile.open(sys.argv[1], errors="surrogateescape") as tar:
    for member in tar:
        path = member.name.removeprefix("./").rstrip("/")
        path = "" if path == "." else path
        if member.islnk():
            nodes[path] = nodes[member.linkname.removeprefix("./")]
            continue
        time = decimal.Decimal(member.pax_headers.get("mtime", int(member.mtime)))
        seconds = int(time.to_integral_value(decimal.ROUND_FLOOR))
        content, size = "", 0
        if member.isreg():
            kind, size, sum = FILE, member.size, 0
            file = tar.extractfile(member)
            while data := file.read(1 << 20):
                sum = zlib.crc32(data, sum)
            content = f"{sum:08x}"
        elif member.issym():
            kind, content = SYMLINK, escaped(raw(member.linkname))
        elif member.isdir():
            kind = DIRECTORY
        else:
            sys.exit(f"{path} is a special file")
        prefix = "SCHILY.xattr."
        xattrs = {key.removeprefix(prefix): value for key, value in member.pax_headers.items() if key.startswith(prefix)}
        nanoseconds = int((time - seconds) * 10**9)
        nodes[path] = (kind | member.mode & 0o7777, member.uid, member.gid, seconds, nanoseconds, size, content, path, xattrs)
for path, (mode, uid, gid, seconds, nanoseconds, size, content, same, xattrs) in nodes.items():
    fields = [raw(path).hex(), f"{mode:o}", uid, gid, seconds, nanoseconds, size, content, raw(same).hex()]
    fields += [f"{raw(name).hex()}={raw(value).hex()}" for name, value in sorted(xattrs.items())]
    print(*fields, sep="\t")
