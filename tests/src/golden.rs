//! Streams recorded from a real QEMU (see `tests/golden/README.md`), and how to replay them as QEMU
//! would.

use multifd_core::MainConnection;
use multifd_transport_socket::{SocketStream, SocketTransport};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::Path;

/// The recordings of migrations over sockets.
pub const STREAMS: [&str; 7] = [
    "none-2ch",
    "zlib-2ch",
    "zstd-4ch",
    "zstd-1ch-legacyzero",
    "none-1ch-nozero",
    "none-2ch-persection",
    "live-none-2ch",
];

/// One recording.
#[derive(Debug, Clone)]
pub struct Golden {
    /// What was recorded.
    pub meta: Value,
    /// Every file of it but `meta.json`, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Golden {
    /// Unpacks a recording.
    pub fn load(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.tar.xz"));
        let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut tar = Vec::new();
        lzma_rs::xz_decompress(&mut Cursor::new(packed), &mut tar).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(Cursor::new(tar)).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                files.insert(
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    bytes,
                );
            }
        }
        let meta = serde_json::from_slice(&files.remove("meta.json").unwrap()).unwrap();
        Self { meta, files }
    }

    /// The digest of `pc.ram` when the migration had completed.
    pub fn ram_sha256(&self) -> &str {
        self.meta["ram_sha256"].as_str().unwrap()
    }

    /// The main connection's bytes.
    pub fn main(&self) -> &[u8] {
        &self.files["main.bin"]
    }

    /// The channels' bytes, by id.
    pub fn channels(&self) -> Vec<Vec<u8>> {
        let channels = self.files.iter().filter(|(name, _)| name.starts_with("ch"));
        channels.map(|(_, bytes)| bytes.clone()).collect()
    }

    /// Replays the recording to whoever listens.
    pub fn replay(&self, transport: &SocketTransport) -> Vec<SocketStream> {
        replay(transport, self.main(), &self.channels())
    }
}

/// Connects as QEMU would (main first, every channel before the main one says a word), writes all
/// bytes in parallel, ends each connection, and returns them. A destination that hangs up early is
/// none of our business here.
pub fn replay(transport: &SocketTransport, main: &[u8], channels: &[Vec<u8>]) -> Vec<SocketStream> {
    let mut streams: Vec<_> = (0..=channels.len())
        .map(|_| transport.connect().unwrap())
        .collect();
    std::thread::scope(|scope| {
        let all = std::iter::once(main).chain(channels.iter().map(Vec::as_slice));
        for (stream, bytes) in streams.iter_mut().zip(all) {
            scope.spawn(move || {
                let _ = stream.write_all(bytes);
                let _ = stream.end_writing();
            });
        }
    });
    streams
}
