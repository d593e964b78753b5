//! A file and the companion with its checksums, which appear together.

use crate::atomic::{AtomicFile, check_target};
use crate::place::descriptor_number;
use crate::{Digest, FileError, companion};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that is being written, and its [`companion`] if it is to have one.
/// [`commit`](FileWithCompanion::commit) gives both their names; until then, or if that fails, what
/// had the names before stays.
///
/// A file never appears beside the companion of another: a companion that stood there goes first,
/// and comes back if the file cannot be put in place.
#[derive(Debug)]
pub struct FileWithCompanion {
    file: AtomicFile,
    companion: Option<AtomicFile>,
    path: PathBuf,
    replace: bool,
}

impl FileWithCompanion {
    /// Begins to write `path`. Without `replace`, neither it nor its companion may exist; with it,
    /// regular files are replaced. A file of a descriptor (`/dev/fdset/N`) has no companion.
    ///
    /// # Errors
    /// As [`AtomicFile::create`], for either of the two.
    pub fn create(path: &Path, replace: bool, with_companion: bool) -> Result<Self, FileError> {
        let file = AtomicFile::create(path, replace)?;
        let mut beside = None;
        if descriptor_number(path).is_none() {
            check_target(&companion(path), replace)?;
            beside = with_companion
                .then(|| AtomicFile::create(&companion(path), replace))
                .transpose()?;
        }
        Ok(Self {
            file,
            companion: beside,
            path: path.into(),
            replace,
        })
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Whether there will be a companion, and its checksums are worth computing.
    pub fn has_companion(&self) -> bool {
        self.companion.is_some()
    }

    /// Brings the file's contents to the disk, so that [`FileWithCompanion::commit`] has little to
    /// wait for.
    ///
    /// # Errors
    /// [`FileError::Path`], the system's reason.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync()
    }

    /// Brings both to the disk and gives them their names, the companion first: a file without one
    /// is whole, a companion without a file is nothing.
    ///
    /// # Errors
    /// [`FileError`]; then neither has appeared, unless only syncing the folder failed, or a file
    /// was replaced and its companion could not be put beside it: then the file is there and whole,
    /// without one.
    pub fn commit(mut self, digest: Option<&Digest>) -> Result<(), FileError> {
        self.file.sync()?;
        let beside = companion(&self.path);
        let Some(mut companion) = self.companion.take() else {
            let moved = (descriptor_number(&self.path).is_none() && self.replace)
                .then(|| Moved::aside(&beside))
                .transpose()?;
            self.file.appear()?;
            if let Some(moved) = moved.flatten() {
                moved.discard();
            }
            return self.file.sync_folder();
        };
        if let Some(digest) = digest {
            let mut out = companion.file();
            out.write_all(&digest.encode())
                .map_err(|cause| FileError::Path {
                    path: beside.clone(),
                    doing: "writing",
                    cause,
                })?;
        }
        companion.sync()?;
        let moved = if self.replace {
            Moved::aside(&beside)?
        } else {
            None
        };
        if self.replace {
            // Between the two steps a reader finds a file without checksums, never with wrong ones.
            self.file.appear()?;
            if let Some(moved) = moved {
                moved.discard();
            }
            companion.appear()?;
        } else {
            companion.appear()?;
            if let Err(error) = self.file.appear() {
                companion.disappear(&beside);
                return Err(error);
            }
        }
        if !self.file.is_at(&self.path) {
            // Another has replaced the file meanwhile: our companion must not stand beside it.
            companion.disappear(&beside);
        }
        self.file.sync_folder()
    }
}

/// An old companion that has been moved out of the way; it comes back when this is dropped.
struct Moved {
    from: PathBuf,
    holder: AtomicFile,
    /// What has been moved, locked: nobody takes it for a leftover.
    _locked: File,
    discarded: bool,
}

impl Moved {
    /// Moves what is at `path` aside, if anything is.
    fn aside(path: &Path) -> Result<Option<Self>, FileError> {
        check_target(path, true)?;
        let holder = AtomicFile::create(path, true)?;
        match holder.take_from(path) {
            Ok(moved) => Ok(Some(Self {
                from: path.into(),
                holder,
                _locked: moved,
                discarded: false,
            })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(FileError::Path {
                path: path.into(),
                doing: "moving aside",
                cause,
            }),
        }
    }

    /// It is not wanted any more.
    fn discard(mut self) {
        self.discarded = true;
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if !self.discarded {
            // The temporary name is left to be swept if even that fails.
            let _ = self.holder.give_back(&self.from);
        }
    }
}
