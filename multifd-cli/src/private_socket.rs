//! Where QEMU and this program meet.

use crate::failure::Failure;
use multifd_qemu::qmp::lock_file;
use multifd_transport_socket::Address;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// An address that was asked for, or a Unix socket in a folder nobody else may enter, which goes
/// with it. After a `kill -9` the next run removes the folder: a lock on it (`flock`) says that its
/// process lives.
pub(crate) struct MeetingPlace {
    pub(crate) address: Address,
    folder: Option<(PathBuf, File)>,
}

impl MeetingPlace {
    /// The address asked for, or a private one.
    pub(crate) fn new(asked: Option<&Address>) -> Result<Self, Failure> {
        if let Some(address) = asked {
            return Ok(Self {
                address: address.clone(),
                folder: None,
            });
        }
        let temporary = std::env::temp_dir();
        sweep(&temporary);
        let (path, folder) = create(&temporary).map_err(|cause| Failure::Open {
            path: temporary,
            cause,
        })?;
        Ok(Self {
            address: Address::Unix(path.join("migration")),
            folder: Some((path, folder)),
        })
    }
}

impl Drop for MeetingPlace {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.folder {
            // What is left of it is harmless.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

fn create(temporary: &Path) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = temporary.join(format!("multifd-meeting-{}-{number}", std::process::id()));
        // Somebody else's folder of that name is no private one.
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        let folder = match File::open(&path) {
            // Another process has swept it before it was locked.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        // A file system without locks cannot say that we live; then nobody sweeps either.
        if lock_file(&folder).unwrap_or(true) && folder.metadata()?.nlink() > 0 {
            return Ok((path, folder));
        }
    }
}

/// Removes the folders of dead processes.
fn sweep(temporary: &Path) {
    let Ok(own) = std::fs::metadata("/proc/self").map(|data| data.uid()) else {
        return;
    };
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry
            .file_name()
            .to_string_lossy()
            .starts_with("multifd-meeting-")
            && path
                .symlink_metadata()
                .is_ok_and(|data| data.is_dir() && data.uid() == own);
        if ours
            && let Ok(folder) = File::open(&path)
            && lock_file(&folder).unwrap_or(false)
        {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_processes_folder_is_swept_and_a_living_ones_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let (living, _folder) = create(temporary.path()).unwrap();
        let dead = temporary.path().join("multifd-meeting-7-0");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("migration"), "").unwrap();
        let other = temporary.path().join("somebody's");
        std::fs::create_dir(&other).unwrap();
        sweep(temporary.path());
        assert!(living.exists() && other.exists() && !dead.exists());
    }
}
