//! Mounts behind the scenes: a snapshot in a store becomes a file.

use crate::failure::Failure;
use crate::mount::READY;
use crate::store_args::Key;
use crate::{ending, report, signals};
use multifd_qemu::qmp::{lock_file, state_folder};
use multifd_qemu::store::MAPPED;
use multifd_transport_store::Log;
use multifd_transport_store::SnapshotAddress;
use multifd_transport_store::mount::{Mount, MountOptions, Record};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Seconds after which a process that serves a snapshot ends, when nobody has it open: enough to
/// start a QEMU by hand with what `qemu-options` has printed.
const IDLE: &str = "300";

fn at(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |cause| Failure::Open {
        path: path.into(),
        cause,
    }
}

/// The folder for mounts, which nobody else may enter.
fn base() -> Result<PathBuf, Failure> {
    state_folder().map_err(at("a private folder".as_ref()))
}

/// A snapshot that this process has mounted for itself.
pub(crate) struct Private {
    mount: Option<Mount>,
    folder: PathBuf,
    name: String,
    _lock: File,
}

impl Private {
    /// Mounts a snapshot. A read that fails ends the command: nothing else could tell its reason to
    /// who looks at memory.
    pub(crate) fn mount(address: &SnapshotAddress, key: &Key) -> Result<Self, Failure> {
        let store = key.open(&address.store)?;
        let base = base()?;
        sweep(&base);
        let (folder, lock) = create(&base).map_err(at(&base))?;
        let mounted = folder.clone();
        let failed: Log = Arc::new(move |line| {
            // A thread that waits for the memory waits until the process ends.
            let status = ending::tell(line);
            detach(&mounted);
            remove(&mounted);
            if signals::is_changed() {
                report::note("QEMU's settings are put back by the next multifd that uses it");
            }
            std::process::exit(status.into());
        });
        let options = MountOptions::default()
            .only(Some(vec![address.name.clone()]))
            .record(Record::Off)
            .replay(false)
            .failed(failed);
        // Whatever happens now, the folder goes.
        let mut private = Self {
            mount: None,
            folder,
            name: address.name.clone(),
            _lock: lock,
        };
        private.mount = Some(Mount::start(&store, &private.folder, &options)?);
        Ok(private)
    }

    /// The mapped-ram file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(&self.name).join(MAPPED)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        drop(self.mount.take());
        remove(&self.folder);
    }
}

/// Removes a private mount's folder and lock.
fn remove(folder: &Path) {
    let _ = std::fs::remove_dir(folder);
    if let Some(base) = folder.parent() {
        let _ = std::fs::remove_file(lock_name(base, folder));
    }
}

/// How the folders of private mounts begin: no snapshot's name begins so.
const PRIVATE: &str = ".private-";

/// A new folder, locked for as long as this process lives.
fn create(base: &Path) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{PRIVATE}{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        let folder = lock_path(base, &path)?;
        if lock_file(&folder).unwrap_or(true) {
            return Ok((path, folder));
        }
    }
}

fn lock_name(base: &Path, mount: &Path) -> PathBuf {
    let mut name = mount.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    base.join(name)
}

/// The file whose lock says that a mount's process lives.
fn lock_path(base: &Path, mount: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock_name(base, mount))
}

/// Removes private mounts of dead processes.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Some(mount) = name
            .strip_prefix(PRIVATE)
            .and_then(|name| name.strip_suffix(".lock"))
        else {
            continue;
        };
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if lock_file(&file).unwrap_or(false) {
            let mount = base.join(format!("{PRIVATE}{mount}"));
            detach(&mount);
            let _ = std::fs::remove_dir(&mount);
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Takes a mount away, also from who may not: `fusermount3` may.
fn detach(folder: &Path) {
    if unmount(folder, UnmountFlags::DETACH) == Err(Errno::PERM) {
        let mut fusermount = Command::new("fusermount3");
        let _ = fusermount.args(["-u", "-z"]).arg(folder).output();
    }
}

/// Removes what is left of lasting mounts that have ended: of later snapshots and logins nobody
/// would find them again.
fn sweep_ended(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let folder = entry.path();
        let name = entry.file_name();
        let is_dot = name.as_encoded_bytes().starts_with(b".");
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // One that is being started is locked.
        let Some(lock) = (is_folder && !is_dot)
            .then(|| lock_path(base, &folder).ok())
            .flatten()
        else {
            continue;
        };
        if !lock_file(&lock).unwrap_or(false) {
            continue;
        }
        if rustix::fs::stat(&folder).is_err_and(|error| error == Errno::NOTCONN) {
            detach(&folder);
        }
        // It stays while something is mounted there.
        if std::fs::remove_dir(&folder).is_ok() {
            let _ = std::fs::remove_file(log_name(&folder));
            let _ = std::fs::remove_file(lock_name(base, &folder));
        }
    }
}

fn log_name(folder: &Path) -> PathBuf {
    let mut log = folder.as_os_str().to_owned();
    log.push(".log");
    log.into()
}

/// Snapshots that other processes serve, for as long as somebody has them open.
pub(crate) struct Lasting;

impl Lasting {
    /// The mapped-ram file of a snapshot, served by a process that outlives this one: one that runs
    /// already, or a new one.
    pub(crate) fn find_or_start(address: &SnapshotAddress, key: &Key) -> Result<PathBuf, Failure> {
        // A wrong key or name is told here.
        let store = key.open(&address.store)?;
        let id = store.head(&address.name)?.id;
        let mut place = address.store.to_string();
        if let Some(folder) = address.store.folder() {
            let folder = folder.canonicalize().map_err(at(folder))?;
            place = folder.display().to_string();
        }
        let mut hasher = DefaultHasher::new();
        // A later snapshot of the same name is another one. What runs in another control group has
        // one of its own: this one may end before it, and all that is in it.
        let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        (&place, &address.name, store.id(), &id, &group).hash(&mut hasher);
        let base = base()?;
        sweep_ended(&base);
        let folder = base.join(format!("{}-{:016x}", address.name, hasher.finish()));
        let file = folder.join(&address.name).join(MAPPED);
        // Two that start at the same moment: the second waits, and finds what the first started.
        let _lock = loop {
            let lock = lock_path(&base, &folder).map_err(at(&folder))?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
                .map_err(|error| at(&folder)(error.into()))?;
            // Its last holder may have removed the file.
            if lock.metadata().map_err(at(&folder))?.nlink() > 0 {
                break lock;
            }
        };
        if File::open(&file).is_ok() {
            return Ok(file);
        }
        // What a dead process left.
        detach(&folder);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at(&folder)(error));
            }
            _ => {}
        }
        start(&place, address, &folder, key)?;
        Ok(file)
    }
}

/// Starts a process that serves a snapshot, and waits until it does.
fn start(place: &str, address: &SnapshotAddress, folder: &Path, key: &Key) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(at("this program".as_ref()))?;
    let log = log_name(folder);
    let errors = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(at(&log))?;
    let mut command = Command::new(&program);
    command
        .arg("mount")
        .arg(place)
        .arg(folder)
        .args(["--only", &address.name, "--idle-exit", IDLE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        // Ctrl-C is for this process, not for that one.
        .process_group(0);
    command.args(["--retry-timeout", &key.retry_timeout.to_string()]);
    if let Some(file) = key.file() {
        command.arg("--key-file").arg(file);
    }
    let mut child = command.spawn().map_err(at(&program))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        // It ends with the process, at the latest.
        let _ = BufReader::new(out).read_line(&mut line);
    }
    if line.starts_with(READY) {
        return Ok(());
    }
    let _ = child.wait();
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let said = said
        .lines()
        .next_back()
        .unwrap_or("it said nothing")
        .to_owned();
    Err(Failure::Other(format!(
        "{address} could not be mounted: {}",
        said.trim_start_matches("multifd: ")
    )))
}
