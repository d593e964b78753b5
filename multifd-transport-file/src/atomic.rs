//! Files that appear under their name whole or not at all.

use crate::leftovers::{lock, sweep};
use crate::place::{descriptor_number, file_kind, open_descriptor};
use crate::{FileError, sys};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most bytes of the target's name that the temporary name repeats: a name may have 255.
const MAX_STEM: usize = 200;

/// A file being written beside its target under a temporary name (`.NAME.PID.N.partial`), which
/// [`commit`](AtomicFile::commit) renames into place. Dropped before that, it removes itself; after
/// a `kill -9`, the next [`AtomicFile`] in the same folder removes it. A lock on the file (`flock`)
/// says that its writer lives.
///
/// A target written as `/dev/fdset/N` is the file of descriptor `N`, which somebody else has named:
/// it is emptied at the start, and again if it is not committed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    /// Where it is until it is committed; a descriptor's file has no such place.
    partial: Option<PathBuf>,
    target: PathBuf,
    /// The folder, to be synced when it has the new name.
    folder: Option<File>,
    /// Whether a file that has the name is replaced.
    replace: bool,
    committed: bool,
}

/// Checks that a file may be created at `target`: nothing is there, or with `replace` a regular
/// file, which is to be replaced. The file of a descriptor (`/dev/fdset/N`) was passed to be
/// written to.
///
/// # Errors
/// [`FileError::Exists`]; [`FileError::NotRegular`] for a device, a fifo, a socket, a folder or a
/// symbolic link, which are never replaced; [`FileError::Path`] if the system does not tell.
pub fn check_target(target: &Path, replace: bool) -> Result<(), FileError> {
    if descriptor_number(target).is_some() {
        return Ok(());
    }
    let data = match target.symlink_metadata() {
        Ok(data) => data,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => {
            return Err(FileError::Path {
                path: target.into(),
                doing: "looking for it",
                cause,
            });
        }
    };
    if !data.is_file() {
        return Err(FileError::NotRegular {
            path: target.into(),
            kind: file_kind(data.file_type()),
            advice: "only a regular file is ever replaced",
        });
    }
    if replace {
        Ok(())
    } else {
        Err(FileError::Exists {
            path: target.into(),
        })
    }
}

impl AtomicFile {
    /// Creates the temporary file in the target's folder. Mode 0600: guest memory is nobody else's
    /// business. With `replace`, a regular file that has the target's name then is replaced;
    /// without, it stays, and [`commit`](AtomicFile::commit) fails.
    ///
    /// # Errors
    /// As [`check_target`]; [`FileError::Path`], as when the folder does not exist, or may not be
    /// read or written to.
    pub fn create(target: &Path, replace: bool) -> Result<Self, FileError> {
        let failed = |cause| FileError::Path {
            path: target.into(),
            doing: "creating",
            cause,
        };
        if descriptor_number(target).is_some() {
            let file = open_descriptor(target)?;
            file.set_len(0).map_err(failed)?;
            return Ok(Self {
                file,
                partial: None,
                target: target.into(),
                folder: None,
                replace,
                committed: false,
            });
        }
        let name = target
            .file_name()
            .ok_or_else(|| failed(io::Error::other("the path does not end in a file name")))?;
        check_target(target, replace)?;
        let folder_path = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Opened now, so that nothing but the disk itself can keep the name from being synced in
        // the end.
        let folder = File::open(folder_path).map_err(failed)?;
        sweep(folder_path);
        let (file, partial) = create_partial(target, name.as_bytes()).map_err(failed)?;
        Ok(Self {
            file,
            partial: Some(partial),
            target: target.into(),
            folder: Some(folder),
            replace,
            committed: false,
        })
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn failed(&self, doing: &'static str, cause: io::Error) -> FileError {
        FileError::Path {
            path: self.target.clone(),
            doing,
            cause,
        }
    }

    /// Brings the contents to the disk, gives the file its name, and brings that to the disk.
    ///
    /// # Errors
    /// [`FileError::Path`]. Then there is no new file under the target's name, unless it is the
    /// syncing of the folder that failed: then the file is there and whole, and only a power
    /// failure could take its name away again.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.sync()?;
        self.appear()?;
        self.sync_folder()
    }

    /// Brings the contents to the disk.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| self.failed("syncing", e))
    }

    /// Gives the file its name.
    pub(crate) fn appear(&mut self) -> Result<(), FileError> {
        if let Some(partial) = &self.partial {
            if self.replace {
                // Somebody may have put something else there since the start.
                check_target(&self.target, true)?;
            }
            let renamed = sys::rename(partial, &self.target, self.replace);
            renamed.map_err(|e| self.failed("renaming into place", e))?;
        }
        self.committed = true;
        Ok(())
    }

    /// Moves what is at `path` to the temporary name, in place of this file, which is empty. It is
    /// locked as this was, by the descriptor that is returned.
    #[cfg(feature = "digest")]
    pub(crate) fn take_from(&self, path: &Path) -> io::Result<File> {
        let partial = self.partial.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let moved = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        lock(&moved)?;
        std::fs::rename(path, partial)?;
        Ok(moved)
    }

    /// Whether a path names this file.
    #[cfg(feature = "digest")]
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let identity = |data: std::fs::Metadata| (data.dev(), data.ino());
        let (own, there) = (self.file.metadata(), path.symlink_metadata());
        own.ok()
            .map(identity)
            .is_some_and(|own| there.ok().map(identity) == Some(own))
    }

    /// Takes the file's name away again, unless another has it.
    #[cfg(feature = "digest")]
    pub(crate) fn disappear(&self, path: &Path) {
        if self.is_at(path) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Moves what [`AtomicFile::take_from`] moved back, unless something else has its name by now.
    #[cfg(feature = "digest")]
    pub(crate) fn give_back(&self, path: &Path) -> io::Result<()> {
        let partial = self.partial.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        sys::rename(partial, path, false)
    }

    /// Brings the file's name to the disk.
    pub(crate) fn sync_folder(&self) -> Result<(), FileError> {
        match &self.folder {
            Some(folder) => folder
                .sync_all()
                .map_err(|e| self.failed("syncing the folder of", e)),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a file that cannot be removed; its name says what it
            // is.
            let _ = match &self.partial {
                Some(partial) => std::fs::remove_file(partial),
                None => self.file.set_len(0),
            };
        }
    }
}

/// Creates a file with a temporary name beside `target`, and locks it.
fn create_partial(target: &Path, name: &[u8]) -> io::Result<(File, PathBuf)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let stem = name.get(..MAX_STEM).unwrap_or(name);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tail = format!(".{}.{number}.partial", std::process::id());
        let partial = [b".", stem, tail.as_bytes()].concat();
        let partial = target.with_file_name(OsString::from_vec(partial));
        let file = match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
        {
            // Of a process that had our id, or has it in another namespace.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // Another process may have taken it for a leftover before it was locked.
        if lock(&file)? && file.metadata()?.nlink() > 0 {
            return Ok((file, partial));
        }
    }
}
