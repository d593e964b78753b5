//! A QEMU that is measured: paused, its RAM a file on tmpfs.

use multifd_tests::qemu::{Qemu as Driver, program};
use serde_json::json;
use std::path::Path;
use std::process::Command;

pub(crate) type Result<T> = std::result::Result<T, String>;

/// The QEMU's version, if there is one here.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(program()?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let words: Vec<_> = text.lines().next()?.split(' ').collect();
    words.get(3).map(|word| (*word).to_owned())
}

/// A QEMU that runs. It is killed when dropped.
pub(crate) struct Qemu(Driver);

impl Qemu {
    /// Starts one whose RAM is the file `memory`.
    pub(crate) fn start(memory: &Path, bytes: u64, incoming: bool, prealloc: bool) -> Result<Self> {
        program().ok_or("there is no QEMU")?;
        let prealloc = if prealloc { ",prealloc=on" } else { "" };
        let ram = format!(
            "memory-backend-file,id=pc.ram,size={bytes},share=on,mem-path={}{prealloc}",
            memory.display()
        );
        let size = (bytes >> 20).to_string();
        let mut args = vec![
            "-S",
            "-M",
            "pc,memory-backend=pc.ram",
            "-m",
            &size,
            "-object",
            &ram,
        ];
        if incoming {
            args.extend(["-incoming", "defer"]);
        }
        Ok(Self(Driver::bare(&args)))
    }

    /// Switches multifd on; `capabilities` are those beside it.
    pub(crate) fn multifd(
        &mut self,
        channels: u8,
        compression: &str,
        capabilities: &[&str],
    ) -> Result<()> {
        for name in [&["multifd"], capabilities].concat() {
            self.0.capability(name);
        }
        let parameters = json!({
            "multifd-channels": channels,
            "multifd-compression": compression,
            "multifd-zlib-level": 1,
            "multifd-zstd-level": 1,
            "max-bandwidth": 1_u64 << 40,
        });
        self.0
            .try_execute("migrate-set-parameters", &parameters)
            .map(drop)
    }

    /// Whether it goes past the page cache with files.
    pub(crate) fn direct_io(&mut self, direct: bool) -> Result<()> {
        let parameters = json!({ "direct-io": direct });
        self.0
            .try_execute("migrate-set-parameters", &parameters)
            .map(drop)
    }

    /// Has it listen; returns where.
    pub(crate) fn listen(&mut self, uri: &str) -> String {
        self.0.listen(uri)
    }

    pub(crate) fn migrate(&mut self, uri: &str) {
        self.0.migrate(uri);
    }

    /// Waits for the migration's end, which must be a good one.
    pub(crate) fn wait_completed(&mut self) {
        self.0.wait_completed();
    }

    /// Bytes that went over the wire, as the source counts them.
    pub(crate) fn wire_bytes(&mut self) -> u64 {
        let info = self.0.execute("query-migrate", &json!({}));
        info["ram"]["transferred"].as_u64().unwrap_or(0)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }
}
