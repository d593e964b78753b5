//! QEMUs beside the installed one, as `.ci/install` unpacks them: another version, other
//! architectures.

use std::path::{Path, PathBuf};

/// A QEMU that is only unpacked.
#[derive(Debug, Clone)]
pub struct Unpacked {
    folder: PathBuf,
    /// Its program.
    pub program: PathBuf,
}

impl Unpacked {
    /// Debian 12's own QEMU, 7.2, for x86-64.
    pub fn old() -> Option<Self> {
        Self::find("7.2", "qemu-system-x86_64")
    }

    /// One for 64-bit SPARC, whose pages have 8 KiB.
    pub fn sparc() -> Option<Self> {
        Self::find("sparc", "qemu-system-sparc64")
    }

    /// One for 64-bit ARM.
    pub fn arm() -> Option<Self> {
        Self::find("arm", "qemu-system-aarch64")
    }

    /// A test that needs one returns when there is none, having said so; with `CI` set that is a
    /// failure.
    fn find(name: &str, program: &str) -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/qemu")
            .join(name);
        let program = folder.join("usr/bin").join(program);
        if program.is_file() {
            return Some(Self { folder, program });
        }
        let why = format!("there is no {}: .ci/install unpacks it", program.display());
        assert!(
            std::env::var_os("CI").is_none(),
            "no interop test can run in CI: {why}"
        );
        eprintln!("SKIPPED: {why}");
        None
    }

    /// The arguments by which it finds its firmware.
    pub fn arguments(&self) -> Vec<String> {
        let own = self.folder.join("usr/share/qemu");
        ["-L", own.to_str().unwrap(), "-L", "/usr/share/seabios"]
            .map(String::from)
            .into()
    }

    /// Where its modules are.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("usr/lib/x86_64-linux-gnu/qemu")
    }
}
