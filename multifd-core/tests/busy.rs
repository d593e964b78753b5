//! Channels of a kind that is not worth having all of them busy at once.
#![allow(clippy::unwrap_used)]

use multifd_core::{
    Capabilities, ChannelError, Message, Plain, SendChannel, Sender, SenderConfig, SyncScope,
    Transport, Unblock, WriteFlags, ZeroPages,
};
use multifd_testing::guest;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const CHANNELS: u8 = 8;
const PAGES: u64 = 128 * 40;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    sending: usize,
    most: usize,
    sent: usize,
    /// The next send with pages waits until another channel has sent some.
    hold_one: bool,
    /// Sends wait until so many have been under way at once.
    gather: usize,
}

/// Takes everything; sees how many channels send pages at once.
#[derive(Clone, Default)]
struct Gauge {
    limit: Option<NonZeroUsize>,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Unblock for Gauge {
    fn unblock(&self) {}
}

impl SendChannel for Gauge {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        if message.pages().is_none() {
            return Ok(());
        }
        let (shared, changed) = &*self.shared;
        let mut state = shared.lock().unwrap();
        state.sending += 1;
        state.most = state.most.max(state.sending);
        changed.notify_all();
        let held_at = std::mem::take(&mut state.hold_one).then_some(state.sent);
        let is_held = |state: &mut State| state.most < state.gather || held_at == Some(state.sent);
        let (state, waited) = changed
            .wait_timeout_while(state, DEADLINE, is_held)
            .unwrap();
        drop(state);
        if waited.timed_out() {
            return Err(ChannelError::Stalled { deadline: DEADLINE });
        }
        // Whoever else has work gets here meanwhile.
        for _ in 0..20 {
            std::thread::yield_now();
        }
        let mut state = shared.lock().unwrap();
        state.sending -= 1;
        state.sent += 1;
        changed.notify_all();
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

impl Transport for Gauge {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(self.clone()))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().useful_channels(self.limit)
    }
}

/// Sends all pages of a guest several times; each time every channel has to end the round.
fn rounds(gauge: &Gauge, count: u64) {
    let ram = guest("pc.ram", PAGES);
    let config = SenderConfig::default()
        .channels(CHANNELS)
        .zero_pages(ZeroPages::Off);
    let mut sender = Sender::start(ram, &Plain, gauge, &config).unwrap();
    for _ in 0..count {
        sender.queue_range(0, 0, PAGES * 4096).unwrap();
        sender.sync(SyncScope::Peer).unwrap();
    }
    let stats = sender.finish().unwrap();
    assert_eq!(stats.total().normal_pages, count * PAGES);
    for channel in &stats.channels {
        assert_eq!(channel.syncs, count);
    }
}

#[test]
fn no_more_are_busy_than_are_worth_it() {
    let limited = Gauge {
        limit: NonZeroUsize::new(1),
        ..Gauge::default()
    };
    let begun = Instant::now();
    rounds(&limited, 5);
    // One more may be let in for every 50 ms that the machine stood still.
    let let_in = usize::try_from(begun.elapsed().as_millis() / 50).unwrap();
    assert!(limited.shared.0.lock().unwrap().most <= 1 + let_in);
    let all = Gauge::default();
    all.shared.0.lock().unwrap().gather = 3;
    rounds(&all, 5);
    assert!(all.shared.0.lock().unwrap().most > 2, "the gauge counts");
}

#[test]
fn a_channel_that_is_held_up_lets_another_in() {
    let gauge = Gauge {
        limit: NonZeroUsize::new(1),
        ..Gauge::default()
    };
    gauge.shared.0.lock().unwrap().hold_one = true;
    // It would end with the gauge's deadline if the one that is held up were waited for.
    rounds(&gauge, 2);
}
