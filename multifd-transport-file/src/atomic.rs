//! Files that appear under their name whole or not at all.

use crate::place::{descriptor_number, open_descriptor};
use crate::{FileError, sys};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file being written beside its target under a temporary name (`.NAME.PID.N.partial`), which
/// [`commit`](AtomicFile::commit) renames into place. Dropped before that, it removes itself.
///
/// A target written as `/dev/fdset/N` is the file of descriptor `N`, which somebody else has named: it is emptied at the
/// start, and again if it is not committed.
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

impl AtomicFile {
    /// Creates the temporary file in the target's folder. Mode 0600: guest memory is nobody else's business. With `replace`, a
    /// file that has the target's name then is replaced; without, it stays, and [`commit`](AtomicFile::commit) fails.
    ///
    /// # Errors
    /// [`FileError::Path`], as when the folder does not exist, or may not be read or written to.
    pub fn create(target: &Path, replace: bool) -> Result<Self, FileError> {
        use std::os::unix::fs::OpenOptionsExt;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let failed = |source| FileError::Path {
            path: target.into(),
            doing: "creating",
            source,
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
        if target.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Opened now, so that nothing but the disk itself can keep the name from being synced in the end.
        let folder = File::open(folder).map_err(failed)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.{number}.partial", std::process::id()));
        let partial = target.with_file_name(partial);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(failed)?;
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

    /// Brings the contents to the disk, gives the file its name, and brings that to the disk.
    ///
    /// # Errors
    /// [`FileError::Path`]. Then there is no new file under the target's name, unless it is the syncing of the folder that
    /// failed: then the file is there and whole, and only a power failure could take its name away again.
    pub fn commit(mut self) -> Result<(), FileError> {
        let failed = |doing, source| FileError::Path {
            path: self.target.clone(),
            doing,
            source,
        };
        self.file.sync_all().map_err(|e| failed("syncing", e))?;
        if let Some(partial) = &self.partial {
            let renamed = sys::rename(partial, &self.target, self.replace);
            renamed.map_err(|e| failed("renaming into place", e))?;
        }
        self.committed = true;
        match &self.folder {
            Some(folder) => folder.sync_all().map_err(|e| failed("syncing the folder of", e)),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a file that can not be removed; its name says what it is.
            let _ = match &self.partial {
                Some(partial) => std::fs::remove_file(partial),
                None => self.file.set_len(0),
            };
        }
    }
}
