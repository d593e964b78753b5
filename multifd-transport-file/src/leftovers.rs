//! Temporary files that a dead process left behind.

use crate::sys;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Marks a temporary file as one whose writer lives; `false` if another process has. A file system
/// without locks says yes.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    match sys::lock(file) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e)
            if [
                Some(libc::ENOLCK),
                Some(libc::EOPNOTSUPP),
                Some(libc::ENOSYS),
            ]
            .contains(&e.raw_os_error()) =>
        {
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

/// Whether a name is one of our temporary ones: `.NAME.PID.N.partial`.
fn is_partial(name: &[u8]) -> bool {
    let Some(rest) = name
        .strip_suffix(b".partial")
        .filter(|name| name.starts_with(b"."))
    else {
        return false;
    };
    let mut parts = rest.rsplitn(3, |&byte| byte == b'.');
    let is_number = |part: Option<&[u8]>| {
        part.is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit))
    };
    is_number(parts.next())
        && is_number(parts.next())
        && parts.next().is_some_and(|stem| stem.len() > 1)
}

/// Removes temporary files of dead processes from a folder. Only regular files of ours that nobody
/// has locked go; whatever cannot be looked at stays.
pub(crate) fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_partial(entry.file_name().as_bytes()) {
            continue;
        }
        let path = entry.path();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path);
        let Ok(file) = file else { continue };
        let regular = file.metadata().is_ok_and(|data| data.is_file());
        if regular && sys::lock(&file).is_ok() {
            // Gone already, or not ours to remove: either way it is no business of this transfer.
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_names_are_swept() {
        for (name, expected) in [
            (".vm.mapped.12.0.partial", true),
            (".a.1.2.partial", true),
            ("vm.mapped.12.0.partial", false),
            (".vm.mapped.12.partial", false),
            (".vm.mapped.12.x.partial", false),
            (".1.2.partial", false),
            ("..1.2.partial", false),
            (".vm.mapped", false),
        ] {
            assert_eq!(is_partial(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn a_dead_writers_file_goes_and_a_living_ones_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let living = File::create(path(".vm.7.0.partial")).unwrap();
        assert!(lock(&living).unwrap());
        std::fs::write(path(".vm.7.1.partial"), "dead").unwrap();
        std::fs::write(path("vm"), "somebody's").unwrap();
        std::fs::create_dir(path(".dir.7.1.partial")).unwrap();
        std::os::unix::fs::symlink(path("vm"), path(".link.7.1.partial")).unwrap();
        sweep(folder.path());
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ".dir.7.1.partial",
                ".link.7.1.partial",
                ".vm.7.0.partial",
                "vm"
            ]
        );
    }
}
