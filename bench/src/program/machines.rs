//! The QEMUs of these cases.

use crate::ours::Outcome;
use multifd_tests::qemu::Qemu;
use serde_json::json;
use std::path::Path;

/// A paused one whose RAM is a file on tmpfs.
pub(crate) fn paused(ram: &Path, bytes: u64) -> Qemu {
    let object = format!(
        "memory-backend-file,id=pc.ram,size={bytes},share=on,mem-path={}",
        ram.display()
    );
    let size = (bytes >> 20).to_string();
    Qemu::bare(&[
        "-S",
        "-M",
        "pc,memory-backend=pc.ram",
        "-m",
        &size,
        "-object",
        &object,
    ])
}

/// One that waits for a migration of a guest without a drive.
pub(crate) fn waiting(bytes: u64) -> Qemu {
    let size = (bytes >> 20).to_string();
    Qemu::bare(&["-S", "-M", "pc", "-m", &size, "-incoming", "defer"])
}

/// As fast as QEMU can.
pub(crate) fn unlimited(qemu: &mut Qemu) {
    qemu.execute("migrate-set-parameters", &json!({ "max-bandwidth": 0 }));
}

/// Has a QEMU write a file by itself: `multifd` and `mapped-ram`, four threads.
pub(crate) fn save(qemu: &mut Qemu, file: &Path) {
    qemu.mapped_ram(4, false);
    unlimited(qemu);
    qemu.migrate(&format!("file:{}", file.display()));
    qemu.wait_completed();
}

/// Has a QEMU load a file by itself.
pub(crate) fn load(qemu: &mut Qemu, file: &Path) {
    qemu.mapped_ram(4, false);
    let uri = format!("file:{}", file.display());
    qemu.execute("migrate-incoming", &json!({ "uri": uri }));
    qemu.wait_completed();
}

pub(crate) fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?)
}
