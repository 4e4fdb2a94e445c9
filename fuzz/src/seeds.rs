//! Writes the inputs that fuzzing begins with: the data of the unit tests, as each target takes it.
//!
//! ```text
//!   seeds FOLDER ──> FOLDER/TARGET/seed-N
//! ```

use std::path::Path;

// Linked for the functions that the coverage counters call.
use libfuzzer_sys as _;
use nullspace_guest::frame::{Kind, encode, encode_message, encode_window};

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("usage: seeds FOLDER");
    let all = [
        ("guest_frames", guest_frames()),
        ("guest_link", guest_link()),
        ("vmm_qcow2", vmm_qcow2()),
        ("vmm_firecracker", vmm_firecracker()),
        ("chunks_manifest", nullspace_chunks::fuzzing::manifest_seeds()),
        ("chunks_pack", nullspace_chunks::fuzzing::pack_seeds()),
        ("edge_address", nullspace_edge::fuzzing::address_seeds()),
        ("edge_framing", nullspace_edge::fuzzing::framing_seeds()),
        ("oci_manifest", oci_manifest()),
        ("oci_config", oci_config()),
        ("dockerfile_outline", dockerfiles()?),
    ];
    for (target, seeds) in all {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}

/// The Dockerfiles of the definition's own tests.
fn dockerfiles() -> std::io::Result<Vec<Vec<u8>>> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/nullspace-definition/tests/dockerfiles");
    let mut found = Vec::new();
    for case in std::fs::read_dir(cases)? {
        let file = case?.path().join("Dockerfile");
        if file.is_file() {
            found.push(std::fs::read(file)?);
        }
    }
    Ok(found)
}

/// A mode, the length of pieces, a stream.
fn guest_frames() -> Vec<Vec<u8>> {
    let exit = br#"{"is":"exit","code":3,"timed_out":true,"signal":9}"#;
    let messages: [(u32, Kind, &[u8]); 8] = [
        (0, Kind::Hello, b""),
        (0, Kind::HelloAck, br#"{"abi":6,"kernel":"6","boot_id":"b","root_ready":true}"#),
        (1, Kind::Open, br#"{"op":"exec","argv":["a"],"envs":{"A":"b"},"stdin":true}"#),
        (1, Kind::Reply, br#"{"is":"started","pid":7}"#),
        (1, Kind::Stdout, b"hello\n"),
        (1, Kind::Stderr, b""),
        (1, Kind::Eof, b""),
        (1, Kind::End, exit),
    ];
    let mut all = Vec::new();
    for mode in 0..4 {
        let mut seed = vec![mode, 16];
        if mode > 1 {
            seed.extend_from_slice(b"junk before it");
        }
        for (channel, kind, payload) in messages {
            encode(7, channel, kind, payload, &mut seed);
        }
        encode_window(7, 1, 4096, &mut seed);
        all.push(seed);
    }
    // Messages of several frames, and one that another frame cuts.
    let mut seed = vec![0, 255];
    encode_message(7, 2, Kind::Reply, &vec![b' '; 70_000], &mut seed);
    all.push(seed.clone());
    let mut cut = seed[..seed.len() - 24 - (70_000 - (64 << 10))].to_vec();
    encode(7, 3, Kind::End, exit, &mut cut);
    all.push(cut);
    all
}

/// A mode, the host's calls, the guest's script.
fn guest_link() -> Vec<Vec<u8>> {
    // 0 n: wait; 5 kind to message: a message to the newest channel; 4 word: output.
    let answered = |message: u8, end: u8| vec![0, 2, 5, 0, 0, message, 9, 4, 200, 0, 4 | 8, 9, 0, 5, 1, 0, end, 0];
    let mut all = Vec::new();
    for (calls, message, end) in
        [(0x00_u16, 1, 3), (0x11, 1, 3), (0x44, 2, 0), (0x77, 9, 0), (0x88, 0, 9), (0xcc, 0, 0)]
    {
        for mode in [0, 1, 2, 8] {
            let mut seed = vec![mode, calls as u8, calls as u8];
            for _ in 0..3 {
                seed.extend_from_slice(&answered(message, end));
            }
            all.push(seed);
        }
    }
    // Silence, a flood of windows, too much output.
    all.push(vec![1, 0x55, 0x55, 0, 255, 0, 255]);
    all.push(vec![1, 0x00, 0x00, 0, 2, 3, 4, 255, 255, 1, 4, 3, 4, 255, 255, 1, 4]);
    all.push(vec![1, 0x11, 0x11, 0, 2, 5, 0, 0, 1, 7, 4, 255, 255, 4, 255, 255, 4, 255, 255, 4, 255, 255, 4, 255, 255]);
    all
}

/// How much the file is cut, then words for its tables: place, offset, value.
fn vmm_qcow2() -> Vec<Vec<u8>> {
    let l2 = |entry: u8, cluster: u8, bitmap: [u8; 8]| {
        [&[2, entry * 2, cluster, 2, entry * 2 + 1, 99][..], &bitmap].concat()
    };
    vec![
        vec![0],
        [&[0][..], &l2(0, 6, [0, 0, 0, 0, 255, 255, 255, 255])].concat(),
        [&[9][..], &l2(1, 6, [0, 0, 0, 255, 0, 0, 255, 0]), &l2(2, 7, [255, 0, 0, 0, 0, 255, 255, 255])].concat(),
        [&[200][..], &l2(5, 7, [1, 0, 0, 0, 1, 0, 0, 0])].concat(),
        vec![0, 1, 0, 5, 1, 1, 4],
    ]
}

/// The length of pieces, an answer.
fn vmm_firecracker() -> Vec<Vec<u8>> {
    let answers: [&[u8]; 8] = [
        b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n",
        b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n{\"firecracker_version\":\"1.10.1\"} \n",
        b"HTTP/1.1 400 \r\ncontent-length: 42\r\n\r\n{\"fault_message\":\"The kernel file cannot\"}\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 \r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 101 \r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ];
    answers.iter().map(|answer| [&[7][..], answer].concat()).collect()
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A media type's number or 255 for a reference, then the document.
fn oci_manifest() -> Vec<Vec<u8>> {
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{DIGEST}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{DIGEST}","size":3}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{DIGEST}","size":5,"platform":{{"architecture":"amd64","os":"linux"}}}},{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{DIGEST}","size":5}}]}}"#
    );
    vec![
        [&[2][..], manifest.as_bytes()].concat(),
        [&[0][..], manifest.as_bytes()].concat(),
        [&[1][..], index.as_bytes()].concat(),
        [&[255][..], b"ghcr.io:443/a/b:tag@", DIGEST.as_bytes()].concat(),
        [&[255][..], b"debian:12"].concat(),
    ]
}

fn oci_config() -> Vec<Vec<u8>> {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1000","ExposedPorts":{{"80/tcp":{{}}}},"Env":["A=b"],"Entrypoint":["/x"],"Cmd":["y"],"WorkingDir":"/w","Labels":{{"a":"b"}},"StopSignal":"TERM"}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
    );
    vec![config.into_bytes(), b"{}".to_vec()]
}
