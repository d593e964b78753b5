//! Packets prepared on threads that are not the channels'.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::packet::Compression;
use multifd_core::{
    Encode, Error, IncomingPages, IndependentPackets, Method, MethodError, PageBatch, PayloadBuf,
    Plain, Prepare, Receiver, ReceiverConfig, RecvChannel, Sender, SenderConfig, SyncScope, Unpack,
    UnpackError, Workers,
};
use multifd_testing::{Pipes, bytes, guest, write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A thread a job; counts how many have run, and how many at once.
#[derive(Default)]
struct Threads {
    jobs: AtomicUsize,
}

impl Workers for Threads {
    fn threads(&self) -> usize {
        3
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        std::thread::Builder::new()
            .name("pool".into())
            .spawn(job)
            .unwrap();
    }
}

/// Copies pages with every bit flipped; fails, or panics, at a page that says so.
struct Flip;

impl Method for Flip {
    fn kind(&self) -> Compression {
        Compression::Zstd
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(Self))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(Self))
    }
}

impl IndependentPackets for Flip {}

impl Prepare for Flip {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        assert_eq!(
            std::thread::current().name(),
            Some("pool"),
            "prepared by a channel"
        );
        for offset in pages.normal() {
            let mut page = [0; 4096];
            pages.block().page(*offset).unwrap().copy_to(&mut page);
            assert!(!page.starts_with(b"panic"), "as asked for");
            if page.starts_with(b"fail") {
                return Err(MethodError::Codec {
                    method: self.kind(),
                    reason: "as asked for".into(),
                });
            }
            payload.staged().extend(page.map(|byte| !byte));
        }
        Ok(())
    }
}

impl Unpack for Flip {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        for page in pages.pages() {
            let mut bytes = [0; 4096];
            channel.recv(&mut bytes)?;
            page.copy_from(&bytes.map(|byte| !byte));
        }
        Ok(())
    }
}

fn config(channels: u8) -> SenderConfig {
    SenderConfig::default().channels(channels)
}

#[test]
fn every_round_arrives_whatever_thread_prepared_it() {
    for channels in [1, 2, 5] {
        let (source, target) = (guest("pc.ram", 1500), guest("pc.ram", 1500));
        let pipes = Pipes::new(channels);
        let methods: Vec<Arc<dyn Method>> = vec![Arc::new(Flip), Arc::new(Plain)];
        let mut receiver =
            Receiver::new(target.clone(), ReceiverConfig::default().methods(methods)).unwrap();
        for pipe in &pipes.0 {
            receiver.attach(Box::new(pipe.clone())).unwrap();
        }
        let threads = Arc::new(Threads::default());
        let method = Encode::on_pool(&Flip, Arc::clone(&threads) as Arc<dyn Workers>);
        let mut sender = Sender::start(source.clone(), method, &pipes, &config(channels)).unwrap();
        for round in 0..6u64 {
            for page in (round..1500).step_by(2) {
                write(&source, page, &format!("round {round} page {page}"));
            }
            sender.queue_range(0, 0, 1500 * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
            receiver.wait_sync().unwrap();
            assert!(bytes(&source) == bytes(&target), "round {round}");
        }
        let sent = sender.finish().unwrap().total();
        let arrived = receiver.finish().unwrap().total();
        assert_eq!(arrived, sent);
        assert_eq!(sent.normal_pages + sent.zero_pages, 6 * 1500);
        assert!(threads.jobs.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn a_codec_that_fails_or_panics_on_the_pool_ends_the_transfer() {
    for text in ["fail", "panic"] {
        let source = guest("pc.ram", 1500);
        write(&source, 700, text);
        let pipes = Pipes::new(2);
        let method = Encode::on_pool(&Flip, Arc::new(Threads::default()));
        let mut sender = Sender::start(source, method, &pipes, &config(2)).unwrap();
        let queued = sender.queue_range(0, 0, 1500 * 4096);
        let error = queued
            .and_then(|()| sender.sync(SyncScope::Peer))
            .unwrap_err();
        match text {
            "fail" => assert!(matches!(error, Error::Prepare { .. }), "{error}"),
            _ => assert!(matches!(error, Error::PoolPanicked), "{error}"),
        }
        assert_eq!(sender.finish().unwrap_err().to_string(), error.to_string());
    }
}

/// Threads that are not there.
struct Nobody;

impl Workers for Nobody {
    fn threads(&self) -> usize {
        0
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        drop(job);
    }
}

#[test]
fn a_pool_that_does_not_run_its_jobs_ends_the_transfer() {
    let source = guest("pc.ram", 1500);
    let pipes = Pipes::new(2);
    let method = Encode::on_pool(&Flip, Arc::new(Nobody));
    let mut sender = Sender::start(source, method, &pipes, &config(2)).unwrap();
    let queued = sender.queue_range(0, 0, 1500 * 4096);
    let error = queued
        .and_then(|()| sender.sync(SyncScope::Peer))
        .unwrap_err();
    assert!(matches!(error, Error::PoolPanicked), "{error}");
    assert!(sender.finish().is_err());
}

#[test]
fn a_transfer_dropped_half_way_waits_for_its_jobs() {
    let source = guest("pc.ram", 5000);
    (0..5000).for_each(|page| write(&source, page, "text"));
    let pipes = Pipes::new(1);
    let method = Flip;
    let mut sender = Sender::start(
        source,
        Encode::on_pool(&method, Arc::new(Threads::default())),
        &pipes,
        &config(1),
    )
    .unwrap();
    // Nobody takes anything out of the pipe: what fits into it and the queues has been prepared.
    sender.queue_range(0, 0, 128 * 4096).unwrap();
    drop(sender);
    assert_eq!(pipes.0[0].handles(), 1, "somebody still holds the channel");
}
