//! Files by path, or by the number of a descriptor that was inherited.

use crate::FileError;
use std::fs::{File, FileType, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The descriptor a path names, if it is written as `/dev/fdset/N` or `/dev/fd/N`: descriptor `N`
/// of this process.
pub fn descriptor_number(path: &Path) -> Option<u32> {
    let text = path.to_str()?;
    let number = text
        .strip_prefix("/dev/fdset/")
        .or_else(|| text.strip_prefix("/dev/fd/"))?;
    number.parse().ok()
}

/// Opens a regular file for reading, by path or as `/dev/fdset/N`. It never waits, as opening a
/// fifo would.
///
/// # Errors
/// [`FileError::Path`], the system's reason; [`FileError::NotRegular`].
pub fn open_read(path: &Path) -> Result<File, FileError> {
    open(path, OpenOptions::new().read(true))
}

/// Opens a descriptor's file for reading and writing. It is opened anew: whoever passed it keeps
/// its own.
pub(crate) fn open_descriptor(path: &Path) -> Result<File, FileError> {
    open(path, OpenOptions::new().read(true).write(true))
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, FileError> {
    let real = real(path);
    let failed = |cause| FileError::Path {
        path: path.into(),
        doing: "opening",
        cause,
    };
    // Without waiting: a fifo would be opened only once somebody writes to it.
    let file = options
        .custom_flags(libc::O_NONBLOCK)
        .open(real)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        return Err(FileError::NotRegular {
            path: path.into(),
            kind: file_kind(kind),
            advice: "a regular file is needed here",
        });
    }
    Ok(file)
}

/// What a file that is no regular one is.
pub(crate) fn file_kind(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a fifo"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else if kind.is_file() {
        "a regular file"
    } else {
        "no file"
    }
}

/// A path that the system understands.
fn real(path: &Path) -> PathBuf {
    match descriptor_number(path) {
        Some(number) => PathBuf::from(format!("/proc/self/fd/{number}")),
        None => path.into(),
    }
}

/// Whether two paths name one file, by whatever names, or by a descriptor. Paths that name nothing
/// do not.
pub fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let data = real(path).metadata().ok()?;
        Some((data.dev(), data.ino()))
    };
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn descriptors_are_named_by_number() {
        assert_eq!(descriptor_number(Path::new("/dev/fdset/7")), Some(7));
        assert_eq!(descriptor_number(Path::new("/dev/fd/0")), Some(0));
        for other in ["/dev/fdset/", "/dev/fdset/x", "fdset/1", "/dev/null"] {
            assert_eq!(descriptor_number(Path::new(other)), None, "{other}");
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        let mut again = open_read(Path::new(&format!("/dev/fdset/{}", file.as_raw_fd()))).unwrap();
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(
            file.stream_position().unwrap(),
            5,
            "the one passed is left alone"
        );
        assert!(open_read(Path::new("/dev/fdset/999999")).is_err());
    }
}
