//! How the system schedules the threads that receive.

/// Has the calling thread no longer interrupt others when it wakes up (`SCHED_BATCH`).
///
/// What comes waits in the channel's buffer all the same. A thread that takes it as soon as a piece is there interrupts
/// whoever sends it, where both are on one machine, for each piece, and finds little; one that waits its turn finds more. It gets as much
/// time as before. For threads that send this would be wrong: next to a guest that computes they would send too late.
///
/// A thread that has another policy than the usual one keeps it. Where the system refuses, all stays as it was.
pub(crate) fn interrupt_nobody() {
    let param = libc::sched_param { sched_priority: 0 };
    let this_thread: libc::c_long = 0;
    let batch = libc::c_long::from(libc::SCHED_BATCH);
    // The system's own calls: some C libraries have only stubs for these.
    // SAFETY: takes a number, returns one.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, this_thread) };
    if policy == libc::c_long::from(libc::SCHED_OTHER) {
        // SAFETY: reads `param`, which lives until it returns.
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, this_thread, batch, &raw const param) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_after(first: libc::c_int) -> libc::c_int {
        let thread = std::thread::spawn(move || {
            let param = libc::sched_param { sched_priority: 0 };
            // SAFETY: reads `param`, which lives until it returns.
            let set = unsafe { libc::sched_setscheduler(0, first, &raw const param) };
            assert_eq!(set, 0);
            interrupt_nobody();
            // SAFETY: takes a number, returns one.
            unsafe { libc::sched_getscheduler(0) }
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_usual_policy_gives_way_and_others_stay() {
        assert_eq!(policy_after(libc::SCHED_OTHER), libc::SCHED_BATCH);
        assert_eq!(policy_after(libc::SCHED_BATCH), libc::SCHED_BATCH);
        assert_eq!(policy_after(libc::SCHED_IDLE), libc::SCHED_IDLE);
    }
}
