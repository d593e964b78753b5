//! Paths of Unix sockets: whose they are, and whether anybody still uses them.

use crate::connect::stream_socket;
use socket2::SockAddr;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A path that a socket of ours has been bound to. It is removed when this is dropped, unless it is
/// another's by then.
#[derive(Debug)]
pub(crate) struct BoundPath {
    path: PathBuf,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

fn identity(data: &Metadata) -> (u64, u64) {
    (data.dev(), data.ino())
}

impl BoundPath {
    /// The path as it is right after binding.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            file: path.symlink_metadata().ok().as_ref().map(identity),
        }
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let now = self.path.symlink_metadata().ok().as_ref().map(identity);
        if now.is_some() && now == self.file {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket's path if nobody uses it any more; `false` if somebody may.
pub(crate) fn remove_abandoned(path: &Path, target: &SockAddr) -> io::Result<bool> {
    let Ok(before) = path.symlink_metadata() else {
        return Ok(false);
    };
    if !before.file_type().is_socket() || !refuses(target) || is_bound(path) {
        return Ok(false);
    }
    // Another process may have taken it over meanwhile.
    let after = path.symlink_metadata()?;
    if identity(&before) != identity(&after) {
        return Ok(false);
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

/// Whether nobody listens there. It does not wait: a full backlog is somebody's.
fn refuses(target: &SockAddr) -> bool {
    let attempt = || {
        let socket = stream_socket(target)?;
        socket.set_nonblocking(true)?;
        socket.connect(target)
    };
    matches!(attempt(), Err(e) if e.kind() == ErrorKind::ConnectionRefused)
}

/// Whether a socket of this network namespace is bound to the path, though it may not listen yet.
/// Of a path that was bound as a relative one only the last part can be compared; where the kernel
/// does not tell, somebody is taken to be there.
fn is_bound(path: &Path) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/net/unix") else {
        return true;
    };
    let real = path.canonicalize().ok();
    let mut paths = table.lines().filter_map(bound_path).map(Path::new);
    paths.any(|bound| {
        if bound.is_absolute() {
            bound == path || (real.is_some() && bound.canonicalize().ok() == real)
        } else {
            bound.file_name() == path.file_name()
        }
    })
}

/// The path in a line of the kernel's table: what stands after the seventh field, spaces and all.
fn bound_path(line: &str) -> Option<&str> {
    let mut rest = line;
    for _ in 0..7 {
        rest = rest.trim_start_matches(' ').split_once(' ')?.1;
    }
    Some(rest.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_may_have_spaces() {
        let line = "ffff8: 00000002 00000000 00010000 0001 01 31543 /run/a socket/s";
        assert_eq!(bound_path(line), Some("/run/a socket/s"));
        assert_eq!(
            bound_path("ffff8: 00000002 00000000 00010000 0001 01 31543"),
            None
        );
    }
}
