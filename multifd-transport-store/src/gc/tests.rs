//! Writers, deleters and garbage collections, interleaved request by request, with crashes and
//! stalls: no snapshot ever lacks a chunk.

mod turnstile;

use super::{GcOptions, gc};
use crate::backend::Backend;
use crate::{
    ChunkCache, Protection, Snapshot, Store, StoreError, StoreOptions, WriteOptions, Writer,
};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use turnstile::{Actor, Turnstile};

const CHUNK: usize = 4096;

/// Contents of a snapshot: each letter is a chunk.
fn contents(letters: &[u8]) -> Vec<u8> {
    letters
        .iter()
        .flat_map(|&letter| (0..CHUNK).map(move |n| letter.wrapping_mul(31) ^ (n % 251) as u8))
        .collect()
}

fn options() -> StoreOptions {
    StoreOptions::default().chunk_size(CHUNK as u32)
}

fn write(store: &Store, name: &str, letters: &[u8]) -> Result<(), StoreError> {
    let mut settings = WriteOptions::default().threads(1).uploads(2);
    // A few chunks a pack.
    settings.pack_size = 1000;
    let mut writer = Writer::start(store, name, settings)?;
    writer.stream("s", &contents(letters))?;
    writer.finish().map(drop)
}

/// Every chunk of every snapshot is in some pack.
fn check(store: &Store) {
    let mut have = HashSet::new();
    let packs = store.packs().unwrap();
    store
        .all_chunks(&packs, |_, chunks| {
            have.extend(chunks.into_iter().map(|chunk| chunk.name));
        })
        .unwrap();
    for listed in store.list().unwrap().snapshots {
        let manifest = store.manifest(&listed.head.name).unwrap();
        for chunk in manifest.chunks() {
            assert!(
                have.contains(&chunk.name),
                "{} lost {}",
                listed.head.name,
                chunk.name
            );
        }
    }
}

#[derive(Debug, Clone)]
enum Work {
    Write(Vec<u8>),
    Remove(u8),
    Read(u8),
    Gc,
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        3 => proptest::collection::vec(1_u8..6, 1..5).prop_map(Work::Write),
        2 => (0_u8..2).prop_map(Work::Remove),
        2 => (0_u8..2).prop_map(Work::Read),
        3 => Just(Work::Gc),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A request of one actor goes through; so much time passes.
    Go(u8, bool),
    Crash(u8),
    /// Everybody sleeps for longer than a lease lives.
    Stall,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => (any::<u8>(), any::<bool>()).prop_map(|(actor, tick)| Step::Go(actor, tick)),
        1 => any::<u8>().prop_map(Step::Crash),
        1 => Just(Step::Stall),
    ]
}

fn run(store: &Store, number: usize, work: &Work) -> Result<(), StoreError> {
    match work {
        Work::Write(letters) => write(store, &format!("w{number}"), letters),
        Work::Remove(which) => store.remove(&format!("old{which}")),
        Work::Read(which) => {
            let reader = Protection::start(store, Arc::new(|_| ()))?;
            let snapshot = reader.open(&format!("old{which}"), &ChunkCache::new(0))?;
            let letters: &[u8] = if *which == 0 { &[1, 2, 3] } else { &[3, 4] };
            let mut found = vec![0; letters.len() * CHUNK];
            for (number, chunk) in found.chunks_mut(CHUNK).enumerate() {
                snapshot.read_at(0, (number * CHUNK) as u64, chunk)?;
            }
            assert_eq!(found, contents(letters));
            Ok(())
        }
        Work::Gc => gc(store, &GcOptions::default()).map(drop),
    }
}

proptest! {
    #[test]
    fn no_interleaving_loses_a_chunk(
        works in proptest::collection::vec(work(), 2..5),
        steps in proptest::collection::vec(step(), 0..150),
        gone in any::<bool>(),
        collected in any::<bool>(),
    ) {
        let turnstile = Turnstile::new();
        let free = Store::over(turnstile.inner(), &options()).unwrap();
        write(&free, "old0", &[1, 2, 3]).unwrap();
        write(&free, "old1", &[3, 4]).unwrap();
        if gone {
            free.remove("old0").unwrap();
        }
        if collected {
            // What is left has moved.
            gc(&free, &GcOptions::default()).unwrap();
        }
        let actors: Vec<Actor> = works.iter().map(|_| turnstile.actor()).collect();
        let (mut stalled, mut crashed) = (false, HashSet::new());
        let results = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, (work, actor)) in works.iter().zip(&actors).enumerate() {
                threads.push(scope.spawn(move || {
                    let clock = actor.clock();
                    let mut backend = Backend::over(actor.objects(), "store");
                    backend.clock = clock;
                    let result = Store::open_at(backend, &options())
                        .and_then(|store| run(&store, number, work));
                    actor.done();
                    result
                }));
            }
            for step in steps {
                match step {
                    Step::Go(which, tick) => {
                        turnstile.go(usize::from(which) % actors.len());
                        turnstile.pass(Duration::from_micros(u64::from(tick)));
                    }
                    Step::Crash(which) => {
                        let which = usize::from(which) % actors.len();
                        crashed.insert(which);
                        turnstile.crash(which);
                    }
                    Step::Stall => {
                        stalled = true;
                        turnstile.pass(Duration::from_secs(40 * 60));
                    }
                }
                check(&free);
            }
            turnstile.open();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        check(&free);
        // What a writer was told is there is there, with its contents.
        for (number, (work, result)) in works.iter().zip(&results).enumerate() {
            // A reader that has opened its snapshot reads all of it, unless it slept for longer
            // than its lease lived.
            if let (Work::Read(_), Err(error)) = (work, result)
                && !stalled
                && !crashed.contains(&number)
            {
                prop_assert!(matches!(error, StoreError::NoSnapshot { .. }), "{error}");
            }
            if let (Work::Write(letters), Ok(())) = (work, result) {
                let cache = ChunkCache::new(0);
                let snapshot = Snapshot::open(&free, &format!("w{number}"), &cache).unwrap();
                let mut found = vec![0; letters.len() * CHUNK];
                snapshot.read_at(0, 0, &mut found).unwrap();
                prop_assert_eq!(found, contents(letters));
            }
        }
        // When all have ended, two collections leave nothing that is not used.
        turnstile.pass(Duration::from_secs(40 * 60));
        let mut backend = Backend::over(turnstile.inner(), "store");
        backend.clock = turnstile.clock();
        let late = Store::open_at(backend, &options()).unwrap();
        gc(&late, &GcOptions::default()).unwrap();
        gc(&late, &GcOptions::default()).unwrap();
        check(&free);
        let names = late.list().unwrap().snapshots;
        let used: u64 = names.iter().map(|one| one.head.sizes.stored).sum();
        let packs: u64 = late.packs().unwrap().iter().map(|pack| pack.len).sum();
        prop_assert!(names.is_empty() == (packs == 0), "{used} used, {packs} in packs");
        let rest = late.backend.list("leases").unwrap().len();
        let marks = late.condemned_names().unwrap().len();
        prop_assert_eq!((rest, marks), (0, 0));
    }
}

#[test]
fn what_nobody_uses_is_removed_and_what_is_shared_stays() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let store = Store::over(objects, &options()).unwrap();
    write(&store, "a", &[1, 2, 3, 4, 5, 6]).unwrap();
    write(&store, "b", &[1, 3, 7]).unwrap();
    let before = store.packs().unwrap().len();
    let dry = gc(&store, &GcOptions::default().dry_run(true)).unwrap();
    assert_eq!((dry.removed_packs, dry.repacked, dry.snapshots), (0, 0, 2));
    store.remove("a").unwrap();
    let dry = gc(&store, &GcOptions::default().dry_run(true)).unwrap();
    assert!(
        dry.removed_packs > 0 && store.packs().unwrap().len() == before,
        "{dry:?}"
    );
    let report = gc(&store, &GcOptions::default()).unwrap();
    assert!(
        report.removed_packs > 0 && report.waiting_packs == 0,
        "{report:?}"
    );
    // Pack by pack it has moved, and is read all the same.
    let snapshot = Snapshot::open(&store, "b", &ChunkCache::new(1 << 20)).unwrap();
    let mut found = vec![0; 3 * CHUNK];
    snapshot.read_at(0, 0, &mut found).unwrap();
    assert_eq!(found, contents(&[1, 3, 7]));
    let again = gc(&store, &GcOptions::default()).unwrap();
    assert_eq!((again.removed_packs, again.repacked), (0, 0));
}

#[test]
fn a_mark_that_was_seen_late_is_not_as_old_as_it_says() {
    let turnstile = Turnstile::new();
    let store = Store::over(turnstile.inner(), &options()).unwrap();
    write(&store, "a", &[1, 2]).unwrap();
    store.remove("a").unwrap();
    let hour = Duration::from_secs(3600);
    turnstile.pass(hour);
    let mut writer = Writer::start(&store, "b", WriteOptions::default()).unwrap();
    // A gc began to write it before, and stalled until now.
    turnstile.back(hour / 2);
    for pack in store.packs().unwrap() {
        let mark = format!("condemned/{}", pack.name);
        store.backend.put(&mark, bytes::Bytes::new()).unwrap();
    }
    turnstile.pass(hour / 2);
    let report = gc(&store, &GcOptions::default()).unwrap();
    assert_eq!((report.removed_packs, report.waiting_for), (0, 1));
    writer.stream("s", &contents(&[2, 1])).unwrap();
    writer.finish().unwrap();
    check(&store);
}

#[test]
fn a_reader_keeps_what_it_has_open_and_nothing_else() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let store = Store::over(objects, &options()).unwrap();
    write(&store, "a", &[1, 2]).unwrap();
    write(&store, "b", &[3, 4]).unwrap();
    write(&store, "c", &[5]).unwrap();
    let reader = Protection::start(&store, Arc::new(|_| ())).unwrap();
    let snapshot = reader.open("a", &ChunkCache::new(0)).unwrap();
    store.remove("a").unwrap();
    store.remove("b").unwrap();
    let collect = || gc(&store, &GcOptions::default()).unwrap();
    let report = collect();
    assert!(report.removed_packs > 0, "{report:?}");
    assert_eq!((report.waiting_packs, report.waiting_for), (1, 1));
    let mut found = vec![0; 2 * CHUNK];
    snapshot.read_at(0, 0, &mut found).unwrap();
    assert_eq!(found, contents(&[1, 2]));
    // The lease is still there, and needs nothing.
    drop(snapshot);
    let report = collect();
    assert_eq!((report.removed_packs, report.waiting_packs), (1, 0));
    drop(reader);
    assert!(store.backend.list("leases").unwrap().is_empty());
}

#[test]
fn a_reader_of_chunks_that_were_moved_keeps_them() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let store = Store::over(objects, &options()).unwrap();
    let collect = || gc(&store, &GcOptions::default()).unwrap();
    write(&store, "a", &[1, 2, 3, 4, 5, 6]).unwrap();
    write(&store, "b", &[1]).unwrap();
    store.remove("a").unwrap();
    assert!(collect().repacked > 0);
    // What it names is gone already.
    let reader = Protection::start(&store, Arc::new(|_| ())).unwrap();
    let one = reader.open("b", &ChunkCache::new(0)).unwrap();
    let other = reader.open("b", &ChunkCache::new(0)).unwrap();
    store.remove("b").unwrap();
    let report = collect();
    assert_eq!((report.removed_packs, report.waiting_packs), (0, 1));
    // Two of one lease are two readers.
    drop(one);
    assert_eq!(collect().removed_packs, 0);
    let mut found = vec![0; CHUNK];
    other.read_at(0, 0, &mut found).unwrap();
    assert_eq!(found, contents(&[1]));
    drop(other);
    assert_eq!(collect().removed_packs, 1);
}

#[test]
fn a_writer_that_has_begun_keeps_what_it_may_use() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let store = Store::over(objects, &options()).unwrap();
    write(&store, "a", &[1, 2]).unwrap();
    let mut writer = Writer::start(&store, "b", WriteOptions::default()).unwrap();
    store.remove("a").unwrap();
    let report = gc(&store, &GcOptions::default()).unwrap();
    assert_eq!(
        (
            report.removed_packs,
            report.waiting_packs,
            report.waiting_for
        ),
        (0, 1, 1)
    );
    writer.stream("s", &contents(&[2, 1])).unwrap();
    writer.finish().unwrap();
    let report = gc(&store, &GcOptions::default()).unwrap();
    assert_eq!((report.removed_packs, report.waiting_packs), (0, 0));
    check(&store);
}
