//! A file that FUSE serves unchanged: what FUSE itself costs.

use crate::ours::Outcome;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request, Session,
};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Serves one file, named `raw`.
struct Raw {
    file: File,
    len: u64,
}

const TIME: Duration = Duration::from_secs(60);

impl Raw {
    fn attributes(&self, number: u64) -> FileAttr {
        let is_file = number == 2;
        FileAttr {
            ino: INodeNo(number),
            size: if is_file { self.len } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 65536,
            flags: 0,
        }
    }
}

impl Filesystem for Raw {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "raw" {
            reply.entry(&TIME, &self.attributes(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TIME, &self.attributes(number.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.file.read_at(&mut bytes, offset) {
            Ok(len) => reply.data(&bytes[..len]),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

/// Mounts a file as `raw` in a folder, for as long as what is returned lives.
pub(super) fn mount(file: &Path, folder: &Path) -> Outcome<BackgroundSession> {
    std::fs::create_dir_all(folder)?;
    let file = File::open(file)?;
    let len = file.metadata()?.len();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO];
    config.n_threads = Some(4);
    Ok(Session::new(Raw { file, len }, folder, &config)?.spawn()?)
}
