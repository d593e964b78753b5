//! Files by path, or by the number of a descriptor that was inherited.

use crate::FileError;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// The descriptor a path names, if it is written as `/dev/fdset/N` or `/dev/fd/N`: descriptor `N` of this process.
pub fn descriptor_number(path: &Path) -> Option<u32> {
    let text = path.to_str()?;
    let number = text
        .strip_prefix("/dev/fdset/")
        .or_else(|| text.strip_prefix("/dev/fd/"))?;
    number.parse().ok()
}

/// Opens a file for reading, by path or as `/dev/fdset/N`.
///
/// # Errors
/// [`FileError::Path`], the system's reason.
pub fn open_read(path: &Path) -> Result<File, FileError> {
    open(path, OpenOptions::new().read(true))
}

/// Opens a descriptor's file for reading and writing. It is opened anew: whoever passed it keeps its own.
pub(crate) fn open_descriptor(path: &Path) -> Result<File, FileError> {
    open(path, OpenOptions::new().read(true).write(true))
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, FileError> {
    let real = match descriptor_number(path) {
        Some(number) => PathBuf::from(format!("/proc/self/fd/{number}")),
        None => path.into(),
    };
    options.open(real).map_err(|source| FileError::Path {
        path: path.into(),
        doing: "opening",
        source,
    })
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
        assert_eq!(file.stream_position().unwrap(), 5, "the one passed is left alone");
        assert!(open_read(Path::new("/dev/fdset/999999")).is_err());
    }
}
