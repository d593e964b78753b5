//! Folders that nobody else may enter, and files in them that say whether their writer lives.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where what has to survive this process is kept until the machine is started again: the first of
/// these that can be had. All of them are looked into: which one another run has used depends on
/// its environment.
fn places() -> Vec<PathBuf> {
    let own = own_user().unwrap_or(0);
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let mut places = vec![PathBuf::from(format!("/run/user/{own}/multifd"))];
    if own == 0 {
        places.insert(0, "/run/multifd".into());
    }
    places.extend(runtime.map(|runtime| PathBuf::from(runtime).join("multifd")));
    places.push(format!("/tmp/multifd-{own}").into());
    places
}

fn own_user() -> io::Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

/// A folder that nobody else may enter, for what has to survive this process until the machine is
/// started again.
///
/// # Errors
/// The system's reason why there is none.
pub fn state_folder() -> io::Result<PathBuf> {
    let own = own_user()?;
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for path in places() {
        outcome = match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => check(&path, own).map(|()| path),
        };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Makes sure that a folder is one, ours, and closed to others.
fn check(path: &Path, own: u32) -> io::Result<()> {
    let data = path.symlink_metadata()?;
    let others = data.permissions().mode() & 0o77;
    if data.is_dir() && data.uid() == own && others == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} is not a folder of ours that nobody else may enter",
            path.display()
        ),
    ))
}

/// Creates a file `KIND-PID-N.SUFFIX`, locked until it is closed.
pub(super) fn create_locked(
    folder: &Path,
    kind: &str,
    suffix: &str,
) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{kind}-{}-{number}.{suffix}", std::process::id()));
        let file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // Another process may have taken it for one of a dead process before it was locked.
        if lock_file(&file)? && file.metadata()?.nlink() > 0 {
            return Ok((path, file));
        }
    }
}

/// The files of a kind whose writers are dead, locked.
pub(super) fn unlocked(kind: &str) -> Vec<(PathBuf, File)> {
    let own = own_user().unwrap_or(u32::MAX);
    let places = places().into_iter().filter(|path| check(path, own).is_ok());
    places
        .flat_map(|folder| unlocked_in(&folder, kind))
        .collect()
}

fn unlocked_in(folder: &Path, kind: &str) -> Vec<(PathBuf, File)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(&format!("{kind}-")) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && lock_file(&file).unwrap_or(false)
        {
            found.push((entry.path(), file));
        }
    }
    found
}

/// Locks a file or a folder (`flock`) for as long as it is open; `false` if another process has.
///
/// # Errors
/// The system's, as where the file system has no locks.
pub fn lock_file(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_living_processes_are_locked() {
        let folder = tempfile::tempdir().unwrap();
        let (one, file) = create_locked(folder.path(), "journal", "json").unwrap();
        let (other, _kept) = create_locked(folder.path(), "journal", "json").unwrap();
        assert_ne!(one, other);
        assert!(unlocked_in(folder.path(), "journal").is_empty());
        drop(file);
        let paths: Vec<_> = unlocked_in(folder.path(), "journal")
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(paths, [one]);
        assert!(unlocked_in(folder.path(), "something").is_empty());
    }

    #[test]
    fn an_open_folder_is_no_private_one() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().metadata().unwrap().uid();
        let mode = |mode| {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o700);
        check(folder.path(), own).unwrap();
        mode(0o755);
        assert!(check(folder.path(), own).is_err());
    }
}
