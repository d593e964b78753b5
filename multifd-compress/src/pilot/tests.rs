//! A machine and a link without clocks, on which a pilot is tried out.
use super::*;

/// A machine and a link, in bytes a second; each level's speed and ratio.
struct World {
    link: f64,
    cores: f64,
    /// Guest bytes a second that the receiver takes out of zstd, and those it takes as they are.
    unpacking: f64,
    taking: f64,
}

const LEVELS: [i32; 4] = [1, 3, 9, 19];
const PACKET: usize = 524_288;

impl World {
    /// A machine of two cores whose receiver is no limit.
    fn with_link(link: f64) -> Self {
        Self {
            link,
            cores: 2.0,
            unpacking: f64::INFINITY,
            taking: f64::INFINITY,
        }
    }

    /// Guest bytes a second of one core, and wire bytes for each guest byte.
    fn level(index: usize) -> (f64, f64) {
        [(400e6, 0.55), (220e6, 0.5), (45e6, 0.46), (3e6, 0.44)][index]
    }

    fn speed(&self, index: Option<usize>) -> f64 {
        match index {
            None => self.link.min(self.taking),
            Some(level) => {
                let (speed, ratio) = Self::level(level);
                (self.cores * speed)
                    .min(self.link / ratio)
                    .min(self.unpacking)
            }
        }
    }

    /// Goes on with a transfer, and returns guest bytes a second over this part of it.
    fn run(&self, pilot: &mut Pilot, bytes: f64) -> f64 {
        let start = pilot.now.as_secs_f64();
        let (mut now, mut done) = (start, 0.0);
        let duration = Duration::from_secs_f64;
        while done < bytes {
            let at = duration(now);
            if pilot.begin_comparison(at) {
                let mut results = Vec::new();
                for choice in pilot.candidates() {
                    let (speed, ratio) = Self::level(choice - 1);
                    let last = Measured {
                        choice,
                        computing: duration(PACKET as f64 / speed),
                        wire_bytes: (PACKET as f64 * ratio) as usize,
                    };
                    results.push(last);
                    now += PACKET as f64 / speed / self.cores;
                    if !pilot.goes_on(PACKET, last) {
                        break;
                    }
                }
                pilot.compared(at, PACKET, &results);
            }
            let index = pilot.current.checked_sub(1);
            let ratio = index.map_or(1.0, |index| Self::level(index).1);
            let computing = index.map_or(0.0, |index| {
                PACKET as f64 / Self::level(index).0 / self.cores
            });
            let took = PACKET as f64 / self.speed(index);
            let wire = PACKET as f64 * ratio;
            pilot.prepared(pilot.current, PACKET, wire as usize);
            now += took;
            done += PACKET as f64;
            // Two channels: what is not spent on computing is spent waiting, or copying into the
            // socket.
            let sending = 2.0 * (took - computing).max(wire / 4e9);
            pilot.sent(duration(now), 0, wire as u64, duration(sending / 2.0));
            pilot.sent(duration(now), 1, 0, duration(sending / 2.0));
        }
        done / (now - start)
    }
}

#[test]
fn it_comes_close_to_the_best_choice_whatever_the_link() {
    for link in [12e6, 30e6, 120e6, 300e6, 1200e6, 3000e6] {
        let world = World::with_link(link);
        let mut pilot = Pilot::new(&LEVELS, true, 2.0);
        let reached = world.run(&mut pilot, 2e9);
        let best = (0..4)
            .map(Some)
            .chain([None])
            .map(|index| world.speed(index))
            .fold(0.0, f64::max);
        assert!(
            reached > 0.9 * best,
            "link {link:e}: {reached:e} of {best:e}\n{pilot:?}"
        );
    }
}

#[test]
fn a_link_that_is_no_limit_is_found_out_in_a_few_packets() {
    let mut pilot = Pilot::new(&LEVELS, true, 2.0);
    World::with_link(3e9).run(&mut pilot, 2e8);
    let packets: Vec<_> = pilot.choices.iter().map(|choice| choice.packets).collect();
    assert!(packets[0] > 300 && packets[1] <= 10, "{packets:?}");
}

#[test]
fn a_source_with_little_to_send_says_nothing_of_the_link() {
    let slow = World::with_link(12e6);
    let mut pilot = Pilot::new(&LEVELS, true, 2.0);
    slow.run(&mut pilot, 3e8);
    let chosen = pilot.current;
    let mut now = Duration::from_secs(1000);
    pilot.window = Window::default();
    for _ in 0..200_000 {
        now += Duration::from_millis(10);
        pilot.prepared(pilot.current, PACKET, PACKET / 2);
        pilot.sent(now, 0, PACKET as u64 / 2, Duration::from_micros(50));
    }
    assert!(pilot.link.is_some_and(f64::is_finite), "{pilot:?}");
    pilot.window = Window::default();
    pilot.compared_at = Duration::ZERO;
    let reached = slow.run(&mut pilot, 3e8);
    assert_eq!(pilot.current, chosen, "{pilot:?}");
    assert!(reached > 0.8 * slow.speed(Some(chosen - 1)), "{reached:e}");
}

#[test]
fn it_follows_a_link_that_changes() {
    let mut pilot = Pilot::new(&LEVELS, true, 2.0);
    World::with_link(12e6).run(&mut pilot, 3e8);
    let slow = pilot.current;
    for (link, bytes, expected) in [(3e9, 6e9, 0), (12e6, 6e8, slow)] {
        let world = World::with_link(link);
        world.run(&mut pilot, bytes);
        assert_eq!(pilot.current, expected, "link {link:e}: {pilot:?}");
    }
    // A drop is noticed at once: little goes by the choice that was right before.
    World::with_link(3e9).run(&mut pilot, 6e9);
    let world = World::with_link(12e6);
    let reached = world.run(&mut pilot, 2e8);
    let best = world.speed(Some(slow - 1));
    assert!(reached > 0.75 * best, "{reached:e} of {best:e}: {pilot:?}");
    assert!(slow > 1, "{pilot:?}");
}

#[test]
fn a_receiver_that_is_slow_at_unpacking_is_no_slow_link() {
    for (unpacking, taking) in [
        (270e6, 450e6),
        (200e6, 1200e6),
        (500e6, 450e6),
        (700e6, 300e6),
    ] {
        let world = World {
            unpacking,
            taking,
            ..World::with_link(3e9)
        };
        let mut pilot = Pilot::new(&LEVELS, true, 2.0);
        let reached = world.run(&mut pilot, 2e9);
        let best = f64::max(unpacking, taking);
        assert!(reached > 0.9 * best, "{reached:e} of {best:e}\n{pilot:?}");
    }
}
