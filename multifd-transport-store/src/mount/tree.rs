//! The folders and files of a mount, and their numbers.

use super::working_sets::WorkingSet;
use crate::{ChunkCache, Snapshot, SnapshotFiles, Store, StoreError};
use multifd_core::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// A snapshot that somebody has looked at.
pub(super) struct Opened {
    pub(super) files: SnapshotFiles,
    pub(super) working_set: WorkingSet,
}

/// A folder or a file.
#[derive(Clone)]
pub(super) enum Node {
    Root,
    /// A snapshot, or a folder in it: its path, empty for the snapshot.
    Folder(Arc<Opened>, String),
    File(Arc<Opened>, Arc<str>),
}

impl Node {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File(opened, path) => opened.files.len(path).unwrap_or(0),
            _ => 0,
        }
    }

    /// When it was made, seconds since 1970.
    pub(super) fn created(&self) -> u64 {
        match self {
            Self::Root => 0,
            Self::Folder(opened, _) | Self::File(opened, _) => {
                opened.files.snapshot().manifest().head.created
            }
        }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(..))
    }
}

#[derive(Default)]
struct Numbers {
    nodes: Vec<Node>,
    /// By snapshot and path.
    known: HashMap<(String, String), u64>,
    snapshots: BTreeMap<String, Arc<Opened>>,
}

/// All that has been looked at.
pub(super) struct Tree {
    store: Store,
    only: Option<Vec<String>>,
    cache: Arc<ChunkCache>,
    numbers: Mutex<Numbers>,
    new_working_set: Box<dyn Fn(&Snapshot) -> WorkingSet + Send + Sync>,
}

/// The number of the root folder.
pub(super) const ROOT: u64 = 1;

impl Tree {
    pub(super) fn new(
        store: Store,
        only: Option<Vec<String>>,
        cache: Arc<ChunkCache>,
        new_working_set: Box<dyn Fn(&Snapshot) -> WorkingSet + Send + Sync>,
    ) -> Self {
        Self {
            store,
            only,
            cache,
            numbers: Mutex::new(Numbers {
                nodes: vec![Node::Root],
                ..Numbers::default()
            }),
            new_working_set,
        }
    }

    /// The node of a number.
    pub(super) fn node(&self, number: u64) -> Option<Node> {
        let numbers = lock(&self.numbers);
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        numbers.nodes.get(index).cloned()
    }

    /// All snapshots that have been opened.
    pub(super) fn opened(&self) -> Vec<Arc<Opened>> {
        let numbers = lock(&self.numbers);
        numbers.snapshots.values().cloned().collect()
    }

    /// The snapshots' names.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        if let Some(only) = &self.only {
            return Ok(only.clone());
        }
        let listed = self.store.list()?;
        Ok(listed.into_iter().map(|one| one.head.name).collect())
    }

    /// Opens a snapshot, if there is one of this name.
    pub(super) fn snapshot(&self, name: &str) -> Result<Option<Arc<Opened>>, StoreError> {
        if self
            .only
            .as_ref()
            .is_some_and(|only| !only.iter().any(|one| one == name))
        {
            return Ok(None);
        }
        let numbers = lock(&self.numbers);
        if let Some(opened) = numbers.snapshots.get(name) {
            return Ok(Some(Arc::clone(opened)));
        }
        drop(numbers);
        let snapshot = match Snapshot::open(&self.store, name, &self.cache) {
            Err(StoreError::NoSnapshot { .. } | StoreError::Name { .. }) => return Ok(None),
            other => other?,
        };
        let opened = Arc::new(Opened {
            files: SnapshotFiles::new(&snapshot),
            working_set: (self.new_working_set)(&snapshot),
        });
        let mut numbers = lock(&self.numbers);
        let opened = numbers.snapshots.entry(name.into()).or_insert(opened);
        Ok(Some(Arc::clone(opened)))
    }

    /// What is named `name` in a folder, and its number.
    pub(super) fn find(&self, parent: u64, name: &str) -> Result<Option<(u64, Node)>, StoreError> {
        let (opened, path) = match self.node(parent) {
            Some(Node::Root) => match self.snapshot(name)? {
                Some(opened) => (opened, String::new()),
                None => return Ok(None),
            },
            Some(Node::Folder(opened, path)) if path.is_empty() => (opened, name.to_owned()),
            Some(Node::Folder(opened, path)) => (opened, format!("{path}/{name}")),
            _ => return Ok(None),
        };
        let below = format!("{path}/");
        let node = if opened.files.len(&path).is_some() {
            Node::File(Arc::clone(&opened), path.as_str().into())
        } else if path.is_empty() || opened.files.paths().any(|(one, _)| one.starts_with(&below)) {
            Node::Folder(Arc::clone(&opened), path.clone())
        } else {
            return Ok(None);
        };
        Ok(Some((self.number(&opened, &path, &node), node)))
    }

    fn number(&self, opened: &Opened, path: &str, node: &Node) -> u64 {
        let snapshot = opened.files.snapshot().manifest().head.name.clone();
        let mut numbers = lock(&self.numbers);
        let next = numbers.nodes.len() as u64 + 1;
        let number = *numbers.known.entry((snapshot, path.into())).or_insert(next);
        if number == next {
            numbers.nodes.push(node.clone());
        }
        number
    }

    /// The number of a file, if somebody has looked it up.
    pub(super) fn known(&self, snapshot: &str, path: &str) -> Option<u64> {
        let numbers = lock(&self.numbers);
        numbers.known.get(&(snapshot.into(), path.into())).copied()
    }

    /// What is in a folder: names, and whether each is a file.
    pub(super) fn entries(&self, node: &Node) -> Result<Vec<(String, bool)>, StoreError> {
        let (opened, path) = match node {
            Node::Root => {
                let names = self.names()?;
                return Ok(names.into_iter().map(|name| (name, false)).collect());
            }
            Node::Folder(opened, path) => (opened, path),
            Node::File(..) => return Ok(Vec::new()),
        };
        let mut entries = BTreeMap::new();
        for (one, _) in opened.files.paths() {
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
