//! Storage in memory, through which requests go one at a time, as a test says.

use crate::clock::Clock;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Default)]
struct Party {
    waiting: VecDeque<oneshot::Sender<()>>,
    /// A request of it is being served.
    busy: bool,
    dead: bool,
    done: bool,
}

#[derive(Default)]
struct State {
    parties: Vec<Party>,
    /// Nobody waits any more.
    open: bool,
    /// When objects were written, by a clock that tests set.
    written: HashMap<Path, Duration>,
    now: Duration,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    inner: Arc<InMemory>,
}

pub(super) struct Turnstile(Arc<Shared>);

pub(super) struct Actor {
    shared: Arc<Shared>,
    number: usize,
}

impl Turnstile {
    pub(super) fn new() -> Self {
        let shared = Shared::default();
        shared.state.lock().unwrap().now = Duration::from_secs(1_000_000);
        Self(Arc::new(shared))
    }

    /// The storage, for one that never waits.
    pub(super) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::new(Gate {
            shared: Arc::clone(&self.0),
            number: None,
        })
    }

    pub(super) fn clock(&self) -> Clock {
        let shared = Arc::clone(&self.0);
        Clock::new(move || shared.state.lock().unwrap().now)
    }

    pub(super) fn actor(&self) -> Actor {
        let mut state = self.0.state.lock().unwrap();
        state.parties.push(Party::default());
        Actor {
            shared: Arc::clone(&self.0),
            number: state.parties.len() - 1,
        }
    }

    /// Lets one request of an actor through, if it makes one, and waits until it is served.
    pub(super) fn go(&self, number: usize) {
        let state = self.0.state.lock().unwrap();
        let ready = |state: &mut State| {
            let party = &state.parties[number];
            party.waiting.is_empty() && !party.done
        };
        let mut state = self.0.changed.wait_while(state, ready).unwrap();
        let party = &mut state.parties[number];
        if let Some(next) = party.waiting.pop_front() {
            party.busy = true;
            next.send(()).unwrap();
            let busy = |state: &mut State| state.parties[number].busy;
            drop(self.0.changed.wait_while(state, busy).unwrap());
        }
    }

    /// From now on all requests of an actor fail and do nothing.
    pub(super) fn crash(&self, number: usize) {
        let mut state = self.0.state.lock().unwrap();
        state.parties[number].dead = true;
        release(&mut state.parties[number]);
    }

    pub(super) fn pass(&self, time: Duration) {
        self.0.state.lock().unwrap().now += time;
    }

    /// Sets the clock back.
    pub(super) fn back(&self, time: Duration) {
        self.0.state.lock().unwrap().now -= time;
    }

    /// Lets all requests through from now on.
    pub(super) fn open(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.open = true;
        state.parties.iter_mut().for_each(release);
    }
}

fn release(party: &mut Party) {
    for waiting in party.waiting.drain(..) {
        let _ = waiting.send(());
    }
}

impl Actor {
    pub(super) fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::new(Gate {
            shared: Arc::clone(&self.shared),
            number: Some(self.number),
        })
    }

    pub(super) fn clock(&self) -> Clock {
        Turnstile(Arc::clone(&self.shared)).clock()
    }

    pub(super) fn done(&self) {
        self.shared.state.lock().unwrap().parties[self.number].done = true;
        self.shared.changed.notify_all();
    }
}

/// One actor's way to the storage.
struct Gate {
    shared: Arc<Shared>,
    number: Option<usize>,
}

/// A request that is being served.
struct Served<'g>(&'g Gate);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.0.number {
            self.0.shared.state.lock().unwrap().parties[number].busy = false;
            self.0.shared.changed.notify_all();
        }
    }
}

impl Gate {
    async fn enter(&self) -> Result<Served<'_>> {
        let Some(number) = self.number else {
            return Ok(Served(self));
        };
        let turn = {
            let mut state = self.shared.state.lock().unwrap();
            let free = state.open || state.parties[number].dead;
            (!free).then(|| {
                let (sender, turn) = oneshot::channel();
                state.parties[number].waiting.push_back(sender);
                self.shared.changed.notify_all();
                turn
            })
        };
        if let Some(turn) = turn {
            turn.await.unwrap();
        }
        if self.shared.state.lock().unwrap().parties[number].dead {
            return Err(Error::Generic {
                store: "turnstile",
                source: "killed".into(),
            });
        }
        Ok(Served(self))
    }

    fn dated(shared: &Shared, mut meta: ObjectMeta) -> ObjectMeta {
        let state = shared.state.lock().unwrap();
        let written = state.written[&meta.location];
        let time = std::time::UNIX_EPOCH + written;
        meta.last_modified = time.into();
        meta
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("turnstile")
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("turnstile")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, to: &Path, what: PutPayload, how: PutOptions) -> Result<PutResult> {
        // As in a folder: the time is that of the beginning, and others see it at the end.
        let begun = self.shared.state.lock().unwrap().now;
        let _served = self.enter().await?;
        let written = |time: Option<Duration>| {
            let mut state = self.shared.state.lock().unwrap();
            match time {
                Some(time) => state.written.insert(to.clone(), time),
                None => state.written.remove(to),
            }
        };
        // Its time is there before it is.
        let before = written(Some(begun));
        let done = self.shared.inner.put_opts(to, what, how).await;
        if done.is_err() {
            written(before);
        }
        done
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.shared.inner.put_multipart_opts(to, how).await
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        let _served = self.enter().await?;
        let mut found = self.shared.inner.get_opts(from, how).await?;
        found.meta = Self::dated(&self.shared, found.meta);
        Ok(found)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let gate = Self {
            shared: Arc::clone(&self.shared),
            number: self.number,
        };
        paths
            .and_then(move |path| {
                let gate = Self {
                    shared: Arc::clone(&gate.shared),
                    number: gate.number,
                };
                async move {
                    let _served = gate.enter().await?;
                    let one = futures_util::stream::once(async move { Ok(path) }).boxed();
                    let mut done = gate.shared.inner.delete_stream(one);
                    done.next().await.unwrap()
                }
            })
            .boxed()
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let gate = Self {
            shared: Arc::clone(&self.shared),
            number: self.number,
        };
        let below = below.cloned();
        futures_util::stream::once(async move {
            let _served = gate.enter().await?;
            let found: Vec<_> = gate.shared.inner.list(below.as_ref()).try_collect().await?;
            let dated = found
                .into_iter()
                .map(|meta| Ok(Self::dated(&gate.shared, meta)));
            Ok::<_, Error>(futures_util::stream::iter(dated.collect::<Vec<_>>()))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.shared.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.shared.inner.copy_opts(from, to, how).await
    }
}
