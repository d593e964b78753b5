//! What a QEMU has to be started with to map a snapshot.

use crate::Error;
use crate::file::SnapshotFile;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What boards call RAM that no memory backend was named for. QEMU makes a backend of that name.
const BOARD_RAM: [&str; 5] = [
    "pc.ram",
    "mach-virt.ram",
    "microvm.ram",
    "ram",
    "riscv_virt_board.ram",
];
/// Last parts of the names of blocks that devices and boards have beside RAM.
const NOT_RAM: [&str; 8] = [
    "bios", "rom", "vram", "nvram", "flash0", "flash1", "isa-bios", "fw_cfg",
];
/// What QEMU puts before an object's name in its path.
const OBJECTS: &str = "/objects/";
/// Alignment of a mapping, bytes.
const PAGE: u64 = 4096;

/// A memory backend that is a piece of a snapshot's file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backend {
    /// The name of the RAM block, which is that of the backend.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Where its first page lies in the file, bytes.
    pub offset: u64,
}

/// The options with which a QEMU maps a snapshot's RAM from its file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QemuOptions {
    /// The snapshot's file.
    pub path: PathBuf,
    /// The machine type that the snapshot is of.
    pub machine: String,
    /// One backend for each RAM block that can be mapped.
    pub backends: Vec<Backend>,
    /// Which of them is the machine's RAM, unless NUMA nodes have it all.
    pub machine_memory: Option<String>,
}

impl Backend {
    /// The name of QEMU's object: older machine types put a path before it in the block's.
    pub fn object_id(&self) -> &str {
        self.id.strip_prefix(OBJECTS).unwrap_or(&self.id)
    }
}

impl QemuOptions {
    /// Those for a snapshot.
    ///
    /// Main memory, and the memory of NUMA nodes and DIMMs, is mapped; the memory of devices is
    /// not, nor is that of virtio-mem, of which QEMU discards pieces.
    ///
    /// # Errors
    /// [`Error::CannotMap`] if no block can be mapped, or its place in the file does not allow it;
    /// [`Error::SnapshotFile`] if the file has no absolute path.
    pub fn of(file: &SnapshotFile) -> Result<Self, Error> {
        let path = std::path::absolute(file.path()).map_err(|cause| {
            multifd_transport_file::FileError::Path {
                path: file.path().into(),
                doing: "finding its absolute path",
                cause,
            }
        })?;
        let mut backends = Vec::new();
        for block in &file.mapped().blocks {
            if !is_backend(&block.name) {
                continue;
            }
            let (offset, size) = (
                block.layout.header().pages_offset,
                block.layout.used_length(),
            );
            if !offset.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
                return Err(Error::CannotMap(format!(
                    "RAM block {:?} lies at {offset:#x} of the file, which is not a multiple of a page",
                    block.name
                )));
            }
            backends.push(Backend {
                id: block.name.clone(),
                size,
                offset,
            });
        }
        let mut machine_memory = backends
            .iter()
            .find(|backend| BOARD_RAM.contains(&backend.id.as_str()));
        if machine_memory.is_none()
            && let [only] = backends.as_slice()
        {
            machine_memory = Some(only);
        }
        if backends.is_empty() {
            return Err(Error::CannotMap(
                "none of its RAM blocks is one that a memory backend can have".into(),
            ));
        }
        Ok(Self {
            path,
            machine: file.mapped().configuration.machine.clone(),
            machine_memory: machine_memory.map(|backend| backend.id.clone()),
            backends,
        })
    }

    /// The value of `-object` for a backend. A comma in the path is doubled, as QEMU wants it.
    pub fn object(&self, backend: &Backend) -> OsString {
        let Backend { size, offset, .. } = backend;
        let mut object = OsString::from(format!(
            "memory-backend-file,id={},size={size},offset={offset},share=off,readonly=on,rom=off,mem-path=",
            backend.object_id()
        ));
        object.push(escaped(&self.path));
        object
    }

    /// The options, each of them one argument: `-object` for every backend, `-machine`, and
    /// `-incoming defer`.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all = Vec::new();
        for backend in &self.backends {
            all.push("-object".into());
            all.push(self.object(backend));
        }
        if let Some(id) = &self.machine_memory {
            all.push("-machine".into());
            all.push(format!("memory-backend={id}").into());
        }
        all.extend(["-incoming".into(), "defer".into()]);
        all
    }
}

fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let doubled: Vec<u8> = bytes
        .iter()
        .flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }))
        .collect();
    std::os::unix::ffi::OsStringExt::from_vec(doubled)
}

/// Whether a RAM block is a memory backend's, by its name: a device's block has the device's path
/// before it, a ROM begins with a slash.
pub(crate) fn is_backend(block: &str) -> bool {
    let name = block.strip_prefix(OBJECTS).unwrap_or(block);
    let last = name.rsplit('.').next().unwrap_or(name);
    !name.is_empty() && !name.contains('/') && !NOT_RAM.contains(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_known_by_their_names() {
        for (name, expected) in [
            ("pc.ram", true),
            ("mem0", true),
            ("/objects/mem0", true),
            ("dimm-1", true),
            ("pc.bios", false),
            ("isa-bios", false),
            ("system.flash0", false),
            ("vga.vram", false),
            ("0000:00:02.0/vga.vram", false),
            ("0000:00:03.0/vmem0", false),
            ("/rom@etc/acpi/tables", false),
        ] {
            assert_eq!(is_backend(name), expected, "{name}");
        }
    }

    #[test]
    fn options_are_what_qemu_reads() {
        let options = QemuOptions {
            path: "/a,b/vm.mapped".into(),
            machine: "pc".into(),
            backends: vec![Backend {
                id: "pc.ram".into(),
                size: 1 << 20,
                offset: 4096,
            }],
            machine_memory: Some("pc.ram".into()),
        };
        let words: Vec<_> = options.arguments();
        let object = "memory-backend-file,id=pc.ram,size=1048576,offset=4096,share=off,readonly=on,rom=off,mem-path=/a,,b/vm.mapped";
        assert_eq!(
            words,
            [
                "-object",
                object,
                "-machine",
                "memory-backend=pc.ram",
                "-incoming",
                "defer"
            ]
        );
    }
}
