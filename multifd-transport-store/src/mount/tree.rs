//! The folders and files of a mount, and their numbers.

use super::Log;
use super::working_sets::WorkingSet;
use crate::format::manifest::Head;
use crate::name::check_snapshot_name;
use crate::read::FileList;
use crate::{ChunkCache, Protection, Snapshot, SnapshotFiles, Store, StoreError};
use multifd_core::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// For how long the list of snapshots is believed.
pub(super) const LISTED: Duration = Duration::from_secs(1);

/// A snapshot that somebody has looked at, by its head. Its chunks are known when a file of it is
/// opened.
pub(super) struct Looked {
    name: String,
    id: String,
    created: u64,
    files: FileList,
}

/// A snapshot that somebody has a file of open.
pub(super) struct Opened {
    pub(super) files: SnapshotFiles,
    pub(super) working_set: WorkingSet,
}

/// A folder or a file.
#[derive(Clone)]
pub(super) enum Node {
    Root,
    /// A snapshot, or a folder in it: its path, empty for the snapshot.
    Folder(Arc<Looked>, String),
    File(Arc<Looked>, Arc<str>),
}

impl Node {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File(looked, path) => looked.files.len(path).unwrap_or(0),
            _ => 0,
        }
    }

    /// When it was made, seconds since 1970.
    pub(super) fn created(&self) -> u64 {
        match self {
            Self::Root => 0,
            Self::Folder(looked, _) | Self::File(looked, _) => looked.created,
        }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(..))
    }
}

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    /// By a snapshot's id, and path.
    numbers: HashMap<(String, String), u64>,
    /// By name. One that was removed, and another one of that name, are different ones.
    looked: HashMap<String, Arc<Looked>>,
    /// By id.
    opened: HashMap<String, Weak<Opened>>,
    /// Snapshots whose working sets are being recorded.
    recording: Vec<Arc<Opened>>,
    names: Option<(Instant, Vec<String>)>,
}

/// What a mount shows.
pub(super) struct Tree {
    store: Store,
    protection: Option<Protection>,
    only: Option<Vec<String>>,
    cache: Arc<ChunkCache>,
    state: Mutex<State>,
    new_working_set: Box<dyn Fn(&Snapshot) -> WorkingSet + Send + Sync>,
    log: Log,
}

/// The number of the root folder.
pub(super) const ROOT: u64 = 1;

impl Tree {
    pub(super) fn new(
        store: Store,
        protection: Option<Protection>,
        only: Option<Vec<String>>,
        cache: Arc<ChunkCache>,
        new_working_set: Box<dyn Fn(&Snapshot) -> WorkingSet + Send + Sync>,
        log: Log,
    ) -> Self {
        Self {
            store,
            protection,
            only,
            cache,
            state: Mutex::new(State {
                nodes: vec![Node::Root],
                ..State::default()
            }),
            new_working_set,
            log,
        }
    }

    /// The node of a number.
    pub(super) fn node(&self, number: u64) -> Option<Node> {
        let state = lock(&self.state);
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        state.nodes.get(index).cloned()
    }

    /// The snapshots' names.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        if let Some(only) = &self.only {
            return Ok(only.clone());
        }
        if let Some((when, names)) = &lock(&self.state).names
            && when.elapsed() < LISTED
        {
            return Ok(names.clone());
        }
        let names: Vec<String> = if self.store.is_encrypted() {
            let listing = self.store.list()?;
            for (_, error) in listing.unreadable {
                (self.log)(&error.to_string());
            }
            let snapshots = listing.snapshots.into_iter();
            snapshots.map(|one| one.head.name).collect()
        } else {
            // Their objects are called as they are.
            let objects = self.store.manifest_objects()?.into_iter();
            let names = objects.filter_map(|one| Some(one.path.split_once('/')?.1.to_owned()));
            names
                .filter(|name| check_snapshot_name(name).is_ok())
                .collect()
        };
        lock(&self.state).names = Some((Instant::now(), names.clone()));
        Ok(names)
    }

    /// A snapshot by its name, if there is one now.
    pub(super) fn snapshot(&self, name: &str) -> Result<Option<Arc<Looked>>, StoreError> {
        let is_hidden = |only: &Vec<String>| !only.iter().any(|one| one == name);
        if self.only.as_ref().is_some_and(is_hidden) || check_snapshot_name(name).is_err() {
            return Ok(None);
        }
        let Some(head) = self.store.find_head(name)? else {
            return Ok(None);
        };
        let mut state = lock(&self.state);
        if let Some(looked) = state.looked.get(name).filter(|one| one.id == head.id) {
            return Ok(Some(Arc::clone(looked)));
        }
        let looked = Arc::new(Looked::of(head));
        state.looked.insert(name.into(), Arc::clone(&looked));
        Ok(Some(looked))
    }

    /// What is named `name` in a folder, and its number.
    pub(super) fn find(&self, parent: u64, name: &str) -> Result<Option<(u64, Node)>, StoreError> {
        let (looked, path) = match self.node(parent) {
            Some(Node::Root) => match self.snapshot(name)? {
                Some(looked) => (looked, String::new()),
                None => return Ok(None),
            },
            Some(Node::Folder(looked, path)) if path.is_empty() => (looked, name.to_owned()),
            Some(Node::Folder(looked, path)) => (looked, format!("{path}/{name}")),
            _ => return Ok(None),
        };
        let below = format!("{path}/");
        let is_folder = |(one, _): (&str, u64)| one.starts_with(&below);
        let node = if looked.files.len(&path).is_some() {
            Node::File(Arc::clone(&looked), path.as_str().into())
        } else if path.is_empty() || looked.files.paths().any(is_folder) {
            Node::Folder(Arc::clone(&looked), path.clone())
        } else {
            return Ok(None);
        };
        let mut state = lock(&self.state);
        let next = state.nodes.len() as u64 + 1;
        let number = state.numbers.entry((looked.id.clone(), path));
        let number = *number.or_insert(next);
        if number == next {
            state.nodes.push(node.clone());
        }
        Ok(Some((number, node)))
    }

    /// Opens a snapshot for the readers of a file. `None` if it is gone, and another one has its
    /// name perhaps.
    pub(super) fn open(&self, looked: &Looked) -> Result<Option<Arc<Opened>>, StoreError> {
        let known = |state: &State| state.opened.get(&looked.id).and_then(Weak::upgrade);
        if let Some(opened) = known(&lock(&self.state)) {
            return Ok(Some(opened));
        }
        let snapshot = match &self.protection {
            Some(protection) => protection.open(&looked.name, &self.cache),
            None => Snapshot::open(&self.store, &looked.name, &self.cache),
        };
        let snapshot = match snapshot {
            Err(StoreError::NoSnapshot { .. }) => return Ok(None),
            other => other?,
        };
        if snapshot.manifest().head.id != looked.id {
            return Ok(None);
        }
        let opened = Arc::new(Opened {
            files: SnapshotFiles::new(&snapshot),
            working_set: (self.new_working_set)(&snapshot),
        });
        let mut state = lock(&self.state);
        if let Some(opened) = known(&state) {
            return Ok(Some(opened));
        }
        state.opened.retain(|_, opened| opened.strong_count() > 0);
        let weak = Arc::downgrade(&opened);
        state.opened.insert(looked.id.clone(), weak);
        if opened.working_set.is_recording() {
            state.recording.push(Arc::clone(&opened));
        }
        Ok(Some(opened))
    }

    /// Saves the working sets whose time has come: all of them `at_end`, and those of snapshots that
    /// nobody has open any more.
    pub(super) fn save_working_sets(&self, at_end: bool) {
        let recording = std::mem::take(&mut lock(&self.state).recording);
        for opened in recording {
            let at_end = at_end || Arc::strong_count(&opened) == 1;
            let snapshot = opened.files.snapshot();
            match opened.working_set.save(snapshot, at_end) {
                Ok(true) => {}
                Ok(false) if at_end => {}
                Ok(false) => lock(&self.state).recording.push(opened),
                // Once is enough: the store may be read-only.
                Err(error) => (self.log)(&format!("a working set was not saved: {error}")),
            }
        }
    }

    /// What is in a folder: names, and whether each is a file.
    pub(super) fn entries(&self, node: &Node) -> Result<Vec<(String, bool)>, StoreError> {
        let (looked, path) = match node {
            Node::Root => {
                let names = self.names()?;
                return Ok(names.into_iter().map(|name| (name, false)).collect());
            }
            Node::Folder(looked, path) => (looked, path),
            Node::File(..) => return Ok(Vec::new()),
        };
        let mut entries = BTreeMap::new();
        for (one, _) in looked.files.paths() {
            let rest = if path.is_empty() {
                Some(one)
            } else {
                one.strip_prefix(path.as_str())
                    .and_then(|rest| rest.strip_prefix('/'))
            };
            match rest.map(|rest| rest.split_once('/')) {
                Some(Some((folder, _))) => entries.insert(folder.to_owned(), false),
                Some(None) => entries.insert(rest.unwrap_or_default().to_owned(), true),
                None => None,
            };
        }
        Ok(entries.into_iter().collect())
    }
}

impl Looked {
    fn of(head: Head) -> Self {
        Self {
            files: FileList::of(&head),
            created: head.created,
            name: head.name,
            id: head.id,
        }
    }
}
