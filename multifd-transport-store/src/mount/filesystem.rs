//! The answers to the kernel's requests.

use super::tree::{LISTED, Node, Opened, ROOT, Tree};
use super::{Log, MountOptions};
use crate::StoreError;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, Request,
};
use multifd_core::sync::lock;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long the kernel believes what it was told: nothing ever changes, but snapshots come and go.
const BELIEVED: Duration = Duration::from_secs(3600);

/// Linux's numbers for finding data and holes.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file that somebody has open.
#[derive(Clone)]
struct Handle {
    opened: Arc<Opened>,
    path: Arc<str>,
}

struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    /// When the last one came or went.
    changed: Instant,
}

/// The files that are open.
pub(super) struct Use(Mutex<Handles>);

impl Use {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Handles {
            open: HashMap::new(),
            next: 1,
            changed: Instant::now(),
        }))
    }

    fn open(&self, handle: Handle) -> FileHandle {
        let mut handles = lock(&self.0);
        let number = handles.next;
        handles.next += 1;
        handles.changed = Instant::now();
        handles.open.insert(number, handle);
        FileHandle(number)
    }

    fn get(&self, number: FileHandle) -> Option<Handle> {
        lock(&self.0).open.get(&number.0).cloned()
    }

    fn close(&self, number: FileHandle) {
        let mut handles = lock(&self.0);
        let closed = handles.open.remove(&number.0);
        handles.changed = Instant::now();
        drop(handles);
        // Without the lock: with the last file of a snapshot goes what protects it from gc.
        drop(closed);
    }

    /// Since when no file has been open.
    pub(super) fn idle(&self) -> Option<Duration> {
        let handles = lock(&self.0);
        handles.open.is_empty().then(|| handles.changed.elapsed())
    }
}

/// What is done when a file is opened: its working set is replayed.
pub(super) type OnOpen = Box<dyn Fn(&Arc<Opened>, &Arc<str>, u64) + Send + Sync>;

/// The file system of a mount.
pub(super) struct Files {
    pub(super) tree: Arc<Tree>,
    pub(super) used: Arc<Use>,
    on_open: OnOpen,
    failed: Log,
    owner: (u32, u32),
    others: bool,
}

impl Files {
    pub(super) fn new(
        tree: Arc<Tree>,
        used: Arc<Use>,
        options: &MountOptions,
        on_open: OnOpen,
    ) -> Self {
        let owner = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        Self {
            tree,
            used,
            on_open,
            failed: Arc::clone(options.failed.as_ref().unwrap_or(&options.log)),
            owner: (owner, group),
            others: options.allow_other,
        }
    }

    fn attributes(&self, number: u64, node: &Node) -> FileAttr {
        let time = UNIX_EPOCH + Duration::from_secs(node.created());
        let (kind, perm) = match (node.is_file(), self.others) {
            (true, false) => (FileType::RegularFile, 0o400),
            (true, true) => (FileType::RegularFile, 0o444),
            (false, false) => (FileType::Directory, 0o500),
            (false, true) => (FileType::Directory, 0o555),
        };
        FileAttr {
            ino: INodeNo(number),
            size: node.len(),
            blocks: node.len().div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 65536,
            flags: 0,
        }
    }

    fn failed(&self, what: &str, error: &StoreError) -> Errno {
        (self.failed)(&format!("{what}: {error}"));
        Errno::EIO
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel cannot do, it does without.
        let _ =
            config.add_capabilities(InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_background(64);
        let _ = config.set_congestion_threshold(48);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str() else {
            return reply.error(Errno::ENOENT);
        };
        match self.tree.find(parent.0, name) {
            Ok(Some((number, node))) => {
                let ttl = if parent.0 == ROOT { LISTED } else { BELIEVED };
                reply.entry(&ttl, &self.attributes(number, &node), Generation(0));
            }
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.failed(name, &error)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.node(number.0) {
            Some(node) => reply.attr(&BELIEVED, &self.attributes(number.0, &node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let (looked, path) = match self.tree.node(number.0) {
            Some(Node::File(looked, path)) => (looked, path),
            Some(_) => return reply.error(Errno::EISDIR),
            None => return reply.error(Errno::ENOENT),
        };
        let opened = match self.tree.open(&looked) {
            Ok(Some(opened)) => opened,
            // The kernel then looks its name up again.
            Ok(None) => return reply.error(Errno::ESTALE),
            Err(error) => return reply.error(self.failed(&path, &error)),
        };
        (self.on_open)(&opened, &path, number.0);
        let handle = self.used.open(Handle { opened, path });
        reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.used.close(handle);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Handle { opened, path }) = self.used.get(handle) else {
            return reply.error(Errno::EBADF);
        };
        BUFFER.with(|buffer| {
            let mut buffer = buffer.borrow_mut();
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            let out = &mut buffer[..size as usize];
            let note = |chunk| opened.working_set.note(chunk);
            match opened.files.read_at(&path, offset, out, note) {
                Ok(len) => reply.data(&out[..len]),
                Err(error) => {
                    let name = &opened.files.snapshot().manifest().head.name;
                    reply.error(self.failed(&format!("{name}/{path}"), &error));
                }
            }
        });
    }

    /// Holes and data: who copies or maps a file need not look at zeros.
    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(Handle { opened, path }) = self.used.get(handle) else {
            return reply.error(Errno::EBADF);
        };
        let len = opened.files.len(&path).unwrap_or(0);
        let Some(at) = u64::try_from(offset).ok().filter(|&at| at < len) else {
            return reply.error(Errno::ENXIO);
        };
        let data = opened.files.next_data(&path, at);
        let found = match (whence, data) {
            (SEEK_DATA, Some(data)) => data.start,
            (SEEK_DATA, None) => return reply.error(Errno::ENXIO),
            (SEEK_HOLE, Some(data)) if data.start <= at => data.end,
            (SEEK_HOLE, _) => at,
            _ => return reply.error(Errno::EINVAL),
        };
        reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(node) = self.tree.node(number.0).filter(|node| !node.is_file()) else {
            return reply.error(Errno::ENOTDIR);
        };
        let entries = match self.tree.entries(&node) {
            Ok(entries) => entries,
            Err(error) => return reply.error(self.failed("listing", &error)),
        };
        let dots = [(".".to_owned(), false), ("..".to_owned(), false)];
        let all = dots.into_iter().chain(entries).enumerate();
        for (position, (name, is_file)) in all.skip(offset as usize) {
            let kind = if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            };
            // The kernel looks each one up before it uses it: this number is only shown.
            let shown = INodeNo(position as u64 + 1);
            if reply.add(shown, position as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
