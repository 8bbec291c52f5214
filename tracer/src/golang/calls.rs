//! Which operations a goroutine is in the middle of, and about which container: told from the functions on its stack, by
//! the same catalog that is probed.
//!
//! A name is taken from a stack only where the function must have it there. By the convention of Go 1.16 and older that is
//! its arguments' place in memory. By the newer one arguments come in registers, and since Go has no registers that
//! survive a call, what a function needs afterwards lies in its own frame: the receiver whose lock it releases at its
//! end, the request that a deferred function tells. A frame also holds what earlier calls left there, so all its words are
//! tried, each is believed only if what it points to has the form it must have, and a name counts only if no other word
//! gives another.

use super::catalog::{CATALOG, Entry, Form, Job, Lookup, Place, Text};
use super::goroutines::Seen;
use super::offsets::Abi;
use super::tail;
use super::unwind::Memory;
use crate::decode;
use crate::event::{Kind, Role};
use crate::look::Call;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::LazyLock;

/// How the functions of one program are told from its stacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    role: Role,
    abi: Abi,
    /// Where the string is that a function is about, by the function's name in the catalog.
    places: BTreeMap<String, Vec<Place>>,
}

type Forms = HashMap<&'static [u8], Vec<(&'static Entry, &'static Form)>>;

/// Everything that an operation can be told from, by what follows the last slash of its name.
static FORMS: LazyLock<Forms> = LazyLock::new(|| {
    let mut forms = Forms::new();
    for entry in CATALOG.iter().filter(|entry| entry.job == Job::Span && entry.kind != Kind::LockWait) {
        for form in entry.forms {
            forms.entry(tail(form.name.text().as_bytes())).or_default().push((entry, form));
        }
    }
    forms
});

/// Offset of the status path in `statusStorage`, behind its `sync.RWMutex`.
const STATUS_PATH: u64 = 0x18;
/// Offset of the id in `process.Init`.
const INIT_ID: u64 = 0x40;
/// Bytes above a frame in which a function may keep the arguments that came in registers: nine words.
const SPILLED: u64 = 72;
/// Words of a frame that are tried.
const WORDS: usize = 512;
/// Longest path the kernel takes.
const LONGEST: u64 = 4096;

impl Calls {
    /// For a program of this role.
    pub fn of(lookup: &Lookup<'_, '_>, role: Role, abi: Abi) -> Calls {
        let mut places = BTreeMap::new();
        for (entry, form) in FORMS.values().flatten() {
            if entry.roles.contains(&role) && form.text != Text::None {
                places.insert(form.name.text().to_owned(), lookup.places(form.source));
            }
        }
        Calls { role, abi, places }
    }

    /// The operations, outermost first.
    pub fn of_stack(&self, seen: &Seen, memory: &mut impl Memory) -> Vec<Call> {
        let mut calls: Vec<Call> = Vec::new();
        let mut outer = "";
        for (index, frame) in seen.stack.frames.iter().enumerate().rev() {
            for function in frame.functions.iter().rev() {
                if let Some((entry, form)) = self.form_of(&function.name)
                    && let Some(method) = method_of(entry, outer)
                {
                    let window = Window { seen, index, exact: !function.inlined && self.abi == Abi::Stack };
                    let (object, container) = self.about(entry, form, &window, memory);
                    let fingerprint = fingerprint(seen, index.saturating_sub(1)..index + 1);
                    let call = Call { kind: entry.kind, method, object, container, path: None, fingerprint };
                    // A wrapper has the name of what it wraps.
                    match calls.last_mut().filter(|c| (c.kind, &c.method) == (call.kind, &call.method)) {
                        Some(wrapper) if wrapper.container.is_none() => *wrapper = call,
                        Some(_) => {}
                        None => calls.push(call),
                    }
                }
                outer = &function.name;
            }
        }
        calls
    }

    fn form_of(&self, name: &str) -> Option<(&'static Entry, &'static Form)> {
        let candidates = FORMS.get(tail(name.as_bytes()))?;
        let fits = |(entry, form): &&(&Entry, &Form)| {
            entry.roles.contains(&self.role) && form.name.matches(name.as_bytes())
        };
        candidates.iter().find(fits).copied()
    }

    /// What it is done to, as an address, and the container.
    fn about(
        &self,
        entry: &Entry,
        form: &Form,
        window: &Window<'_>,
        memory: &mut impl Memory,
    ) -> (u64, Option<String>) {
        let places = self.places.get(form.name.text()).map_or(&[][..], Vec::as_slice);
        match entry.kind {
            Kind::StatusUpdate => window.only(memory, 0, |memory, at| {
                let path = string(memory, at.checked_add(STATUS_PATH)?, LONGEST)?;
                let status = path.starts_with('/') && path.ends_with("/status");
                Some((at, status.then(|| decode::container_id(&path)).flatten()?))
            }),
            Kind::InitMethod => {
                window.only(memory, 0, |memory, at| Some((at, id_at(memory, at.checked_add(INIT_ID)?)?)))
            }
            // A request is told at the end by a deferred function; in a shim and below ttrpc it may be gone by then.
            Kind::CriCall | Kind::CriClient => window.named(memory, places),
            Kind::ExitHandling if !window.exact => {
                // The container is a large struct and lies in the caller's frame by all conventions; its id comes first.
                (0, window.argument_string(memory, 0))
            }
            _ if window.exact => window.named(memory, places),
            _ => (0, None),
        }
    }
}

/// What the frames (numbers from the innermost on) of a goroutine that has not gone on come to: the same in each look, also
/// when the runtime has moved the stack meanwhile. `None` where their words were not kept.
pub fn fingerprint(seen: &Seen, frames: Range<usize>) -> Option<u32> {
    let goroutine = &seen.goroutine;
    let frame = |n: usize| seen.stack.frames.get(n).map(|frame| frame.sp);
    let word = |at: u64| usize::try_from(at.checked_sub(goroutine.sp)? / 8).ok();
    let from = word(frame(frames.start)?)?;
    let to = frame(frames.end).map_or(Some(seen.words.len()), word)?;
    let mut hasher = DefaultHasher::new();
    for word in seen.words.get(from..to).filter(|words| !words.is_empty())? {
        // A stack is moved by its upper end, and what points into it with it.
        let own = (goroutine.sp..goroutine.stack_hi).contains(word);
        (own, if own { goroutine.stack_hi - word } else { *word }).hash(&mut hasher);
    }
    Some(hasher.finish() as u32)
}

/// The method of an operation; that of a call to a shim is told by the client's function that makes it.
fn method_of(entry: &Entry, outer: &str) -> Option<String> {
    if entry.kind != Kind::ShimCall {
        return Some(entry.method.to_owned());
    }
    let (client, method) = outer.rsplit_once(").")?;
    client.to_ascii_lowercase().ends_with("taskclient").then(|| method.to_owned())
}

/// One frame of a stack.
struct Window<'s> {
    seen: &'s Seen,
    index: usize,
    /// Whether arguments lie at fixed places in memory.
    exact: bool,
}

impl Window<'_> {
    /// Address above the return address: where arguments lie that came in memory.
    fn above(&self) -> Option<u64> {
        self.seen.stack.frames.get(self.index + 1).map(|frame| frame.sp)
    }

    fn word(&self, at: u64) -> Option<u64> {
        let offset = at.checked_sub(self.seen.goroutine.sp)?;
        self.seen.words.get(usize::try_from(offset / 8).ok()?).copied()
    }

    /// Argument word `n` of a function that got its arguments in memory.
    fn argument(&self, n: u8) -> Option<u64> {
        self.word(self.above()?.checked_add(8 * u64::from(n))?)
    }

    /// The container id whose pointer and length are the argument words from `n` on.
    fn argument_string(&self, memory: &mut impl Memory, n: u8) -> Option<String> {
        let (at, length) = (self.argument(n)?, self.argument(n.checked_add(1)?)?);
        (length == 64).then(|| id_of(memory, at)).flatten()
    }

    /// The words of the frame, with what may be spilled above it.
    fn words(&self) -> &[u64] {
        let from = self.seen.stack.frames.get(self.index).map_or(0, |frame| frame.sp);
        let to = self.above().map_or(from, |above| above.saturating_add(SPILLED));
        let word = |at: u64| (at.saturating_sub(self.seen.goroutine.sp) / 8) as usize;
        let to = word(to).min(self.seen.words.len()).min(word(from).saturating_add(WORDS));
        self.seen.words.get(word(from)..to).unwrap_or_default()
    }

    /// What the argument `n`, or else the only word of the frame that can be it, gives.
    fn only<M: Memory>(
        &self,
        memory: &mut M,
        n: u8,
        read: impl Fn(&mut M, u64) -> Option<(u64, String)>,
    ) -> (u64, Option<String>) {
        let candidates: BTreeSet<u64> = if self.exact {
            self.argument(n).into_iter().collect()
        } else {
            self.words().iter().copied().filter(|word| may_point(*word)).collect()
        };
        let found: BTreeSet<(u64, String)> =
            candidates.into_iter().filter_map(|word| read(memory, word)).collect();
        match (found.len(), found.into_iter().next()) {
            (1, Some((object, id))) => (object, Some(id)),
            _ => (0, None),
        }
    }

    /// The container that a string at one of these places names.
    fn named(&self, memory: &mut impl Memory, places: &[Place]) -> (u64, Option<String>) {
        let mut found = BTreeSet::new();
        for place in places {
            match (*place, self.exact) {
                (Place::Words(n), true) => {
                    found.extend(self.argument_string(memory, n));
                }
                (Place::Field { word, offset }, true) => {
                    let at = self.argument(word).and_then(|to| to.checked_add(u64::from(offset)));
                    found.extend(at.and_then(|at| id_at(memory, at)));
                }
                (Place::Words(_), false) => {
                    let pairs = self.words().windows(2).filter(|pair| pair[1] == 64 && is_address(pair[0]));
                    let texts: BTreeSet<u64> = pairs.map(|pair| pair[0]).collect();
                    found.extend(texts.into_iter().filter_map(|at| id_of(memory, at)));
                }
                (Place::Field { offset, .. }, false) => {
                    let objects: BTreeSet<u64> =
                        self.words().iter().copied().filter(|word| may_point(*word)).collect();
                    let fields = objects.into_iter().filter_map(|to| to.checked_add(u64::from(offset)));
                    found.extend(fields.filter_map(|at| id_at(memory, at)).collect::<Vec<_>>());
                }
            }
        }
        match (found.len(), found.pop_first()) {
            (1, id) => (0, id),
            _ => (0, None),
        }
    }
}

/// Whether a word may be the address of anything: where programs have memory.
fn is_address(word: u64) -> bool {
    (1 << 16..1 << 47).contains(&word)
}

/// Whether a word may be the address of an object that holds pointers.
fn may_point(word: u64) -> bool {
    word.is_multiple_of(8) && is_address(word)
}

/// The string whose header is at `at`, if it has at most `longest` bytes.
fn string(memory: &mut impl Memory, at: u64, longest: u64) -> Option<String> {
    let mut header = [0u8; 16];
    (memory.read(at, &mut header) == 16).then_some(())?;
    let (start, length) = header.split_at(8);
    let text = u64::from_le_bytes(start.try_into().ok()?);
    let length = u64::from_le_bytes(length.try_into().ok()?);
    (1..=longest).contains(&length).then_some(())?;
    let mut bytes = vec![0u8; length as usize];
    (memory.read(text, &mut bytes) == bytes.len()).then_some(())?;
    String::from_utf8(bytes).ok()
}

/// The container id whose string header is at `at`.
fn id_at(memory: &mut impl Memory, at: u64) -> Option<String> {
    let text = string(memory, at, 64)?;
    decode::is_container_id(text.as_bytes()).then_some(text)
}

/// The container id that lies at `at`.
fn id_of(memory: &mut impl Memory, at: u64) -> Option<String> {
    let mut bytes = [0u8; 64];
    (memory.read(at, &mut bytes) == 64 && decode::is_container_id(&bytes)).then_some(())?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golang::pclntab::Frame;
    use crate::golang::unwind::{Goroutine, Pause, Stack, StackFrame};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const SP: u64 = 0xc0_0000_1000;
    const HEAP: u64 = 0xc0_0010_0000;
    /// Words of each frame of a made stack.
    const FRAME: usize = 8;

    /// A heap of named objects.
    #[derive(Default)]
    struct Heap(Vec<u8>);

    impl Heap {
        /// An object with a string's header at `offset`; gives its address.
        fn with_string(&mut self, offset: usize, text: &str) -> u64 {
            let text_at = HEAP + self.0.len() as u64;
            self.0.extend(text.as_bytes());
            self.0.resize(self.0.len().next_multiple_of(8), 0);
            let at = HEAP + self.0.len() as u64;
            self.0.resize(self.0.len() + offset, 0);
            self.0.extend(text_at.to_le_bytes());
            self.0.extend((text.len() as u64).to_le_bytes());
            at
        }

        fn text(&self, object: u64, offset: u64) -> u64 {
            let at = (object + offset - HEAP) as usize;
            u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
        }
    }

    impl Memory for Heap {
        fn word(&mut self, address: u64) -> Option<u64> {
            let mut word = [0; 8];
            (self.read(address, &mut word) == 8).then(|| u64::from_le_bytes(word))
        }

        fn read(&mut self, at: u64, into: &mut [u8]) -> usize {
            let from = at.checked_sub(HEAP).and_then(|at| self.0.get(at as usize..)).unwrap_or_default();
            let n = from.len().min(into.len());
            into[..n].copy_from_slice(&from[..n]);
            n
        }
    }

    /// A stack of these functions, innermost first, each with some words in its frame.
    fn stack(frames: &[(&str, &[u64])]) -> Seen {
        let mut words = Vec::new();
        let mut made = Vec::new();
        for (name, frame) in frames {
            made.push(StackFrame {
                pc: 0x40_0000,
                offset: 0,
                sp: SP + 8 * words.len() as u64,
                functions: vec![Frame { name: (*name).to_owned(), inlined: false, ..Frame::default() }]
                    .into(),
            });
            let mut frame = frame.to_vec();
            frame.resize(FRAME, 0);
            words.extend(frame);
        }
        Seen {
            goroutine: Goroutine {
                g: 0xc0_0000_0100,
                goid: 7,
                pause: Pause::Waiting,
                wait_reason: 0,
                m: 0,
                pc: 0x40_0000,
                sp: SP,
                stack_hi: SP + 8 * words.len() as u64,
            },
            reason: String::new(),
            thread: None,
            stack: Stack { frames: made, cut: None },
            waits: None,
            parked_since: None,
            created_by: None,
            words,
        }
    }

    fn calls(role: Role, abi: Abi, places: &[(&str, Place)]) -> Calls {
        let places = places.iter().map(|(name, place)| ((*name).to_owned(), vec![*place])).collect();
        Calls { role, abi, places }
    }

    const UPDATE_SYNC: &str =
        "github.com/containerd/containerd/pkg/cri/store/container.(*statusStorage).UpdateSync";
    const GOEXIT: (&str, &[u64]) = ("runtime.goexit", &[]);
    const DELETE: &str = "github.com/containerd/containerd/pkg/process.(*Init).Delete";

    fn status_path(id: &str) -> String {
        format!("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/{id}/status")
    }

    #[test]
    fn a_lock_is_named_by_the_only_word_of_the_frame_that_has_its_form() {
        let mut heap = Heap::default();
        let status = heap.with_string(0x18, &status_path(A));
        let other = heap.with_string(0, B);
        let of = calls(Role::Containerd, Abi::Register, &[]);
        let seen = stack(&[("runtime.gopark", &[]), (UPDATE_SYNC, &[1, other, status, status, 64]), GOEXIT]);
        let found = of.of_stack(&seen, &mut heap);
        assert_eq!(
            found,
            [Call {
                kind: Kind::StatusUpdate,
                method: "UpdateSync".into(),
                object: status,
                container: Some(A.into()),
                path: None,
                fingerprint: found[0].fingerprint,
            }]
        );
        // What an earlier call has left there makes it ambiguous, and ambiguous is unknown.
        let stale = heap.with_string(0x18, &status_path(B));
        let seen = stack(&[("runtime.gopark", &[]), (UPDATE_SYNC, &[stale, status]), GOEXIT]);
        let found = of.of_stack(&seen, &mut heap);
        assert_eq!((found[0].object, found[0].container.as_deref()), (0, None));
        // A word of another frame is not looked at.
        let seen = stack(&[("runtime.gopark", &[status]), (UPDATE_SYNC, &[other]), GOEXIT]);
        assert_eq!(of.of_stack(&seen, &mut heap)[0].container, None);
        assert!(calls(Role::Shim, Abi::Register, &[]).of_stack(&seen, &mut heap).is_empty());
    }

    #[test]
    fn a_call_keeps_its_fingerprint_when_its_stack_is_moved_and_another_call_has_another() {
        let gopark: (&str, &[u64]) = ("runtime.gopark", &[9]);
        let of = |frame: &[u64]| stack(&[gopark, (UPDATE_SYNC, frame), GOEXIT]);
        let fingerprint = |seen: &Seen| super::fingerprint(seen, 0..2);
        let seen = of(&[1, SP + 8, 3]);
        assert!(fingerprint(&seen).is_some());
        assert_eq!(fingerprint(&seen), fingerprint(&of(&[1, SP + 8, 3])));
        assert_ne!(fingerprint(&seen), fingerprint(&of(&[1, SP + 8, 4])), "another word");
        assert_ne!(fingerprint(&seen), fingerprint(&of(&[1, SP + 16, 3])), "another place in the stack");
        let mut moved = of(&[1, SP + 8, 3]);
        let by = 0x1_0000;
        moved.goroutine.sp += by;
        moved.goroutine.stack_hi += by;
        moved.stack.frames.iter_mut().for_each(|frame| frame.sp += by);
        assert_ne!(fingerprint(&seen), fingerprint(&moved), "the word still points to where it was");
        moved.words.iter_mut().filter(|word| **word == SP + 8).for_each(|word| *word += by);
        assert_eq!(fingerprint(&seen), fingerprint(&moved));
        let outer = of(&[1, SP + 8, 3]);
        assert!(super::fingerprint(&outer, 2..3).is_some(), "the outermost frame has an end too");
        moved.words.clear();
        assert_eq!(fingerprint(&moved), None);
    }

    #[test]
    fn operations_come_outermost_first_and_inlined_ones_too() {
        let mut heap = Heap::default();
        let init = heap.with_string(0x40, A);
        let service = "github.com/containerd/containerd/runtime/v2/runc/v2.(*service).Delete";
        let mut seen = stack(&[
            ("syscall.Syscall", &[]),
            ("golang.org/x/sys/unix.Unmount", &[]),
            (DELETE, &[init]),
            (service, &[]),
            GOEXIT,
        ]);
        let of = calls(Role::Shim, Abi::Register, &[]);
        let kinds = |seen: &Seen, heap: &mut Heap| -> Vec<(Kind, u64)> {
            of.of_stack(seen, heap).iter().map(|c| (c.kind, c.object)).collect()
        };
        let expected = [(Kind::ShimServe, 0), (Kind::InitMethod, init), (Kind::Unmount, 0)];
        assert_eq!(kinds(&seen, &mut heap), expected);
        // The same with Delete inlined into the service.
        let delete = seen.stack.frames.remove(2);
        let outer = &mut seen.stack.frames[2];
        outer.sp = delete.sp;
        let inlined = Frame { inlined: true, ..delete.functions[0].clone() };
        outer.functions = [inlined].into_iter().chain(outer.functions.iter().cloned()).collect();
        assert_eq!(kinds(&seen, &mut heap), expected);
    }

    #[test]
    fn arguments_in_memory_are_read_where_they_are() {
        let mut heap = Heap::default();
        let (init, stale) = (heap.with_string(0x40, A), heap.with_string(0x40, B));
        let of = calls(Role::Shim, Abi::Stack, &[]);
        let seen = stack(&[(DELETE, &[stale]), ("main.main", &[init, stale])]);
        let found = of.of_stack(&seen, &mut heap);
        assert_eq!((found[0].object, found[0].container.as_deref()), (init, Some(A)));
        let seen = stack(&[(DELETE, &[init]), ("main.main", &[7])]);
        assert_eq!(of.of_stack(&seen, &mut heap)[0].object, 0);
    }

    #[test]
    fn a_call_to_a_shim_has_the_method_of_the_client_that_makes_it() {
        let call = "github.com/containerd/ttrpc.(*Client).Call";
        let of = calls(Role::Containerd, Abi::Register, &[]);
        let mut heap = Heap::default();
        for client in
            ["api/runtime/task/v2.(*ttrpctaskClient).Update", "runtime/v2/task.(*taskClient).Update"]
        {
            let client = format!("github.com/containerd/containerd/{client}");
            let found = of.of_stack(&stack(&[(call, &[]), (&client, &[])]), &mut heap);
            assert_eq!((found[0].kind, found[0].method.as_str()), (Kind::ShimCall, "Update"));
        }
        assert!(of.of_stack(&stack(&[(call, &[]), ("main.ask", &[])]), &mut heap).is_empty());
    }

    #[test]
    fn a_request_and_an_exit_name_their_container() {
        let mut heap = Heap::default();
        let request = heap.with_string(40, A);
        let form = "cri/instrument.(*instrumentedService).UpdateContainerResources";
        let name = format!("github.com/containerd/containerd/pkg/{form}");
        let of = calls(Role::Containerd, Abi::Register, &[(form, Place::Field { word: 3, offset: 40 })]);
        let found = of.of_stack(&stack(&[(&name, &[3, request])]), &mut heap);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].container, None, "the outermost frame's end is not known");
        let found = of.of_stack(&stack(&[(&name, &[3, request]), ("main.main", &[])]), &mut heap);
        assert_eq!(found[0].container.as_deref(), Some(A));

        let text = heap.text(request, 40);
        let exit = "github.com/containerd/containerd/pkg/cri/server.handleContainerExit";
        let found = of.of_stack(&stack(&[(exit, &[]), ("main.main", &[text, 64])]), &mut heap);
        assert_eq!((found[0].kind, found[0].container.as_deref()), (Kind::ExitHandling, Some(A)));
    }
}
