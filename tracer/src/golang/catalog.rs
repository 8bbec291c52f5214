//! What is probed in which kind of program: one table, and its resolution against a binary.
//!
//! Functions are known by their names, so patched, renamed and multi-call binaries work. Sources: containerd v1.4.13 to
//! v2.3, Kubernetes v1.20 to v1.36, Go 1.15 to 1.27, at the places named beside the entries.

use super::pclntab::Function;
use super::probe_site::{RuntimeCalls, Site};
use super::{GoBinary, Name, RUNTIME_CALLS, Refusal};
use crate::event::{Kind, Role};
use serde::{Deserialize, Serialize};

/// One thing that is probed. Argument words are counted from 0, the receiver first; a string takes two words (pointer,
/// length), an interface two (type, data); [`super::offsets::Abi`] says where a word is.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// What kind of operation it tells of.
    pub kind: Kind,
    /// Name of the method or request, as [`crate::event::Operation::method`] gives it; empty where the kind says it all.
    pub method: &'static str,
    /// Programs that it is probed in.
    pub roles: &'static [Role],
    /// What a hit means.
    pub job: Job,
    /// Argument word that becomes [`crate::event::Operation::object`].
    pub object: Option<u8>,
    /// Argument words of a string that names the method instead of `method` (ttrpc clients).
    pub method_words: Option<u8>,
    /// Calls count only if this holds of their arguments.
    pub only_if: Option<Filter>,
    /// Index of the result word pair (type, data) of an `error`, counted over all result words, when it is wanted.
    /// Ends are then at the returns. See [`ErrorResult`].
    pub error_result: Option<ErrorResult>,
    /// The function under each of its names, over the versions.
    pub forms: &'static [Form],
}

/// What a hit of a probe means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// An operation begins at the begin site and ends at the end sites.
    Span,
    /// `sync.(*RWMutex).Lock` begins: the operation (wait, then hold) begins; there are no end sites.
    HoldBegin,
    /// `sync.(*RWMutex).Unlock` begins: the hold ends; there are no end sites.
    HoldEnd,
    /// `runtime.semrelease1`: this goroutine releases the semaphore `object`; the next wake by it is of that semaphore.
    Release,
    /// `runtime.readyWithTime`: this goroutine makes another runnable; `object` is its `sudog`, whose first word is the
    /// `g` that is woken.
    Wake,
}

/// A condition on an argument word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Which word.
    pub word: u8,
    /// Bits that are looked at.
    pub mask: u64,
    /// What they must be.
    pub equals: u64,
}

/// Where a function's `error` result (type word, data word) is at a return: nil when the type word is zero. With a
/// `syscall.Errno` inside, the data word points to the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorResult {
    /// New convention: index of the type word among the result registers (0 = RAX, 1 = RBX, …); data is the next.
    pub register: u8,
    /// Old convention: offset of the type word from RSP at the return (which is that at entry); data is 8 further.
    /// `None` when it lies too deep to be told.
    pub stack: Option<u8>,
}

/// A function under one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The name.
    pub name: Name,
    /// What its arguments say about whom the operation is for.
    pub text: Text,
    /// Where that is.
    pub source: Source,
}

/// What a string found by a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// There is none.
    None,
    /// A container or sandbox id. CRI ids have exactly 64 bytes: where there are several candidates, the right one is
    /// the first whose length is that.
    Id,
    /// Path of a container's status file, `…/containers/<id>/status`.
    StatusPath,
    /// The path that is unmounted.
    MountPath,
}

/// How the place of a string is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is none.
    None,
    /// In the arguments; the first of these words that is the pointer of a string, by version.
    Words(&'static [u8]),
    /// In the struct that an argument word points to, at a fixed offset.
    Field(u8, u16),
    /// In the protobuf message that an argument word points to. Its layout depends on the code generator: the
    /// accessors, where the program has them, tell the offset; else `ProtoReflect` methods tell protobuf-go from gogo.
    Message(u8, &'static Message),
}

/// A protobuf message type under all names of its package.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Accessors of the id field; the first that the program has is believed.
    pub accessors: &'static [Name],
    /// Methods that only protobuf-go generates.
    pub reflection: &'static [Name],
}

/// Where a string is: its pointer, followed by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// Pointer in this argument word, length in the next.
    Words(u8),
    /// At this offset of the struct that the argument word points to.
    Field {
        /// Argument word.
        word: u8,
        /// Byte offset of the pointer; the length is 8 further.
        offset: u16,
    },
}

/// An entry of the catalog, looked up in one binary.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What it is.
    pub entry: &'static Entry,
    /// The function: full name and address without load bias; `None` when the program has none of the names.
    pub function: Option<(String, Function)>,
    /// What the string at `places` is.
    pub text: Text,
    /// Where it is: candidates, best first, at most two. Empty when there is none.
    pub places: Vec<Place>,
    /// Where it begins, or why that cannot be probed.
    pub begin: Result<Site, Refusal>,
    /// Where it ends, one site per exit, or why that cannot be probed. Empty for jobs other than [`Job::Span`].
    pub ends: Result<Vec<Site>, Refusal>,
}

const GO: &[Role] = &[Role::Containerd, Role::Shim, Role::Kubelet, Role::Other];
const CONTAINERD: &[Role] = &[Role::Containerd];
const SHIM: &[Role] = &[Role::Shim];
const UNMOUNTERS: &[Role] = &[Role::Containerd, Role::Shim];
const KUBELET: &[Role] = &[Role::Kubelet];

const fn plain(name: Name) -> Form {
    Form { name, text: Text::None, source: Source::None }
}

const PLAIN: Entry = Entry {
    kind: Kind::LockWait,
    method: "",
    roles: GO,
    job: Job::Span,
    object: None,
    method_words: None,
    only_if: None,
    error_result: None,
    forms: &[],
};

/// A CRI call as containerd serves it: package `cri/pkg/server` in 1.4, `cri/server` in 1.5 and 1.6, `cri/instrument`
/// since 1.7; the Alpha service answers kubelets before 1.26 in 1.6 and 1.7, with messages of its own layout.
/// Arguments: receiver, ctx (2 words), request.
macro_rules! cri {
    ($method:literal) => {
        cri!($method, Text::None, Source::None, Source::None)
    };
    ($method:literal, $field:literal) => {
        cri!(
            $method,
            Text::Id,
            Source::Message(3, &Message {
                accessors: &[
                    Name::Suffix(concat!("cri-api/pkg/apis/runtime/v1.(*", $method, "Request).Get", $field)),
                    Name::Suffix(concat!("cri-api/pkg/apis/runtime/v1alpha2.(*", $method, "Request).Get", $field)),
                ],
                reflection: &[Name::Suffix(concat!("cri-api/pkg/apis/runtime/v1.(*", $method, "Request).ProtoReflect"))],
            }),
            Source::Message(3, &Message {
                accessors: &[Name::Suffix(concat!(
                    "cri-api/pkg/apis/runtime/v1alpha2.(*",
                    $method,
                    "Request).Get",
                    $field
                ))],
                reflection: &[Name::Suffix(concat!(
                    "cri-api/pkg/apis/runtime/v1alpha2.(*",
                    $method,
                    "Request).ProtoReflect"
                ))],
            })
        )
    };
    ($method:literal, $text:expr, $v1:expr, $alpha:expr) => {
        Entry {
            kind: Kind::CriCall,
            method: $method,
            roles: CONTAINERD,
            forms: &[
                cri!(form "cri/instrument.(*instrumentedService).", $method, $text, $v1),
                cri!(form "cri/instrument.(*instrumentedAlphaService).", $method, $text, $alpha),
                cri!(form "cri/server.(*instrumentedService).", $method, $text, $v1),
                cri!(form "cri/server.(*instrumentedAlphaService).", $method, $text, $alpha),
                cri!(form "cri/pkg/server.(*instrumentedService).", $method, $text, $alpha),
            ],
            ..PLAIN
        }
    };
    (form $receiver:literal, $method:literal, $text:expr, $source:expr) => {
        Form { name: Name::Suffix(concat!($receiver, $method)), text: $text, source: $source }
    };
}

/// A request of the shim's task service. Arguments: receiver, ctx (2 words), request.
macro_rules! task {
    ($method:literal, $request:literal) => {
        Entry {
            kind: Kind::ShimServe,
            method: $method,
            roles: SHIM,
            forms: &[
                task!(form "runtime/v2/runc/v2.(*service).", $method, $request),
                task!(form "runtime/v2/runc/task.(*service).", $method, $request),
                task!(form "cmd/containerd-shim-runc-v2/task.(*service).", $method, $request),
            ],
            ..PLAIN
        }
    };
    (form $package:literal, $method:literal, $request:literal) => {
        Form {
            name: Name::Suffix(concat!($package, $method)),
            text: Text::Id,
            source: Source::Message(3, &message!($request, "GetID")),
        }
    };
}

/// A message of the task API: `runtime/v2/task` with gogo until 1.6, `api/runtime/task/v2` and `v3` with protobuf-go.
macro_rules! message {
    ($request:literal, $getter:literal) => {
        Message {
            accessors: &[
                Name::Suffix(concat!("runtime/task/v3.(*", $request, ").", $getter)),
                Name::Suffix(concat!("runtime/task/v2.(*", $request, ").", $getter)),
            ],
            reflection: &[
                Name::Suffix(concat!("runtime/task/v3.(*", $request, ").ProtoReflect")),
                Name::Suffix(concat!("runtime/task/v2.(*", $request, ").ProtoReflect")),
            ],
        }
    };
}

/// A method of the shim's `process.Init`: its lock at +0x20, its id at +0x40, in containerd 1.4 to 2.3.
macro_rules! init {
    ($method:literal) => {
        Entry {
            kind: Kind::InitMethod,
            method: $method,
            roles: SHIM,
            object: Some(0),
            forms: &[
                Form {
                    name: Name::Suffix(concat!("containerd/pkg/process.(*Init).", $method)),
                    text: Text::Id,
                    source: Source::Field(0, 0x40),
                },
                Form {
                    name: Name::Suffix(concat!("cmd/containerd-shim-runc-v2/process.(*Init).", $method)),
                    text: Text::Id,
                    source: Source::Field(0, 0x40),
                },
            ],
            ..PLAIN
        }
    };
}

/// The container's status in containerd: `sync.RWMutex` at 0, path at +0x18.
macro_rules! status {
    ($method:literal) => {
        Entry {
            kind: Kind::StatusUpdate,
            method: $method,
            roles: CONTAINERD,
            object: Some(0),
            forms: &[
                Form {
                    name: Name::Suffix(concat!("cri/store/container.(*statusStorage).", $method)),
                    text: Text::StatusPath,
                    source: Source::Field(0, 0x18),
                },
                Form {
                    name: Name::Suffix(concat!("cri/pkg/store/container.(*statusStorage).", $method)),
                    text: Text::StatusPath,
                    source: Source::Field(0, 0x18),
                },
            ],
            ..PLAIN
        }
    };
}

/// A CRI call as the kubelet makes it: `pkg/kubelet/cri/remote` (exported type before 1.20), `pkg/kubelet/remote`,
/// `k8s.io/cri-client/pkg` since 1.31. A context came before the id in 1.27.
macro_rules! client {
    ($method:literal) => {
        client!($method, Text::None, Source::None)
    };
    ($method:literal, id) => {
        client!($method, Text::Id, Source::Words(&[1, 3]))
    };
    ($method:literal, $text:expr, $source:expr) => {
        Entry {
            kind: Kind::CriClient,
            method: $method,
            roles: KUBELET,
            forms: &[
                Form {
                    name: Name::Suffix(concat!("cri/remote.(*RemoteRuntimeService).", $method)),
                    text: $text,
                    source: $source,
                },
                Form {
                    name: Name::Suffix(concat!("cri/remote.(*remoteRuntimeService).", $method)),
                    text: $text,
                    source: $source,
                },
                Form {
                    name: Name::Suffix(concat!("cri-client/pkg.(*remoteRuntimeService).", $method)),
                    text: $text,
                    source: $source,
                },
            ],
            ..PLAIN
        }
    };
}

/// Everything that is probed.
pub static CATALOG: &[Entry] = &[
    // runtime/sema.go: func semacquire1(addr *uint32, lifo bool, profile semaProfileFlags, …). Only waits for
    // sync.Mutex and sync.RWMutex have both profile flags.
    Entry {
        kind: Kind::LockWait,
        object: Some(0),
        only_if: Some(Filter { word: 2, mask: 3, equals: 3 }),
        forms: &[plain(Name::Exact("runtime.semacquire1"))],
        ..PLAIN
    },
    Entry {
        kind: Kind::LockWait,
        job: Job::Release,
        object: Some(0),
        forms: &[plain(Name::Exact("runtime.semrelease1"))],
        ..PLAIN
    },
    Entry {
        kind: Kind::LockWait,
        job: Job::Wake,
        object: Some(0),
        forms: &[plain(Name::Exact("runtime.readyWithTime"))],
        ..PLAIN
    },
    Entry {
        kind: Kind::LockHold,
        job: Job::HoldBegin,
        object: Some(0),
        forms: &[plain(Name::Exact("sync.(*RWMutex).Lock"))],
        ..PLAIN
    },
    Entry {
        kind: Kind::LockHold,
        job: Job::HoldEnd,
        object: Some(0),
        forms: &[plain(Name::Exact("sync.(*RWMutex).Unlock"))],
        ..PLAIN
    },
    // golang.org/x/sys/unix: func Unmount(target string, flags int) (err error).
    Entry {
        kind: Kind::Unmount,
        roles: UNMOUNTERS,
        error_result: Some(ErrorResult { register: 0, stack: Some(32) }),
        forms: &[Form {
            name: Name::Suffix("golang.org/x/sys/unix.Unmount"),
            text: Text::MountPath,
            source: Source::Words(&[0]),
        }],
        ..PLAIN
    },
    cri!("ListContainers"),
    cri!("ListPodSandbox"),
    cri!("ContainerStatus", "ContainerId"),
    cri!("PodSandboxStatus", "PodSandboxId"),
    // Its failure after a stall is a consequence. Results: (*Response, error), after receiver, ctx and request.
    Entry {
        error_result: Some(ErrorResult { register: 1, stack: Some(48) }),
        ..cri!("UpdateContainerResources", "ContainerId")
    },
    cri!("StopContainer", "ContainerId"),
    cri!("RemoveContainer", "ContainerId"),
    cri!("CreateContainer", "PodSandboxId"),
    cri!("StartContainer", "ContainerId"),
    cri!("RunPodSandbox"),
    cri!("StopPodSandbox", "PodSandboxId"),
    cri!("RemovePodSandbox", "PodSandboxId"),
    cri!("ExecSync", "ContainerId"),
    cri!("ContainerStats", "ContainerId"),
    cri!("ListContainerStats"),
    status!("Update"),
    status!("UpdateSync"),
    // Until 1.7: func handleContainerExit(ctx, e *TaskExit, cntr containerstore.Container) error; from 2.0 a method of
    // criService. The container is a large struct, and passed on the stack by all conventions.
    Entry {
        kind: Kind::ExitHandling,
        roles: CONTAINERD,
        error_result: Some(ErrorResult { register: 0, stack: None }),
        forms: &[
            Form {
                name: Name::Suffix("cri/server.(*criService).handleContainerExit"),
                text: Text::Id,
                source: Source::Message(3, TASK_EXIT),
            },
            Form {
                name: Name::Suffix("cri/server.handleContainerExit"),
                text: Text::Id,
                source: Source::Message(2, TASK_EXIT),
            },
            Form {
                name: Name::Suffix("cri/sbserver.handleContainerExit"),
                text: Text::Id,
                source: Source::Message(2, TASK_EXIT),
            },
            Form {
                name: Name::Suffix("cri/pkg/server.handleContainerExit"),
                text: Text::Id,
                source: Source::Message(2, TASK_EXIT),
            },
        ],
        ..PLAIN
    },
    // func (c *Client) Call(ctx, service, method string, req, resp interface{}) error: service at words 3 and 4, method
    // at 5 and 6, the request's data pointer at 8. All requests of the task API begin with the id.
    Entry {
        kind: Kind::ShimCall,
        roles: CONTAINERD,
        method_words: Some(5),
        forms: &[Form {
            name: Name::Suffix("github.com/containerd/ttrpc.(*Client).Call"),
            text: Text::Id,
            source: Source::Message(8, &message!("UpdateTaskRequest", "GetID")),
        }],
        ..PLAIN
    },
    task!("Create", "CreateTaskRequest"),
    task!("Start", "StartRequest"),
    task!("Delete", "DeleteRequest"),
    task!("Exec", "ExecProcessRequest"),
    task!("Kill", "KillRequest"),
    task!("State", "StateRequest"),
    task!("Update", "UpdateTaskRequest"),
    init!("Delete"),
    init!("Update"),
    init!("Kill"),
    init!("KillAll"),
    init!("Status"),
    init!("SetExited"),
    init!("ExitStatus"),
    init!("ExitedAt"),
    init!("Start"),
    init!("Pause"),
    init!("Resume"),
    init!("Resize"),
    init!("Exec"),
    init!("Checkpoint"),
    // pkg/kubelet/pleg/generic.go; exported since 1.26.
    Entry {
        kind: Kind::Relist,
        roles: KUBELET,
        forms: &[
            plain(Name::Suffix("kubelet/pleg.(*GenericPLEG).relist")),
            plain(Name::Suffix("kubelet/pleg.(*GenericPLEG).Relist")),
        ],
        ..PLAIN
    },
    client!("ListContainers"),
    client!("ListPodSandbox"),
    client!("ContainerStatus", id),
    client!("PodSandboxStatus", id),
    client!("UpdateContainerResources", id),
];

const TASK_EXIT: &Message = &Message {
    accessors: &[Name::Suffix("containerd/api/events.(*TaskExit).GetContainerID")],
    reflection: &[Name::Suffix("containerd/api/events.(*TaskExit).ProtoReflect")],
};

/// Functions that tell what a program is.
const MARKS: [(Role, &[Name]); 3] = [
    (
        Role::Containerd,
        &[
            Name::Suffix("cri/instrument.(*instrumentedService).ListContainers"),
            Name::Suffix("cri/server.(*instrumentedService).ListContainers"),
            Name::Suffix("cri/pkg/server.(*instrumentedService).ListContainers"),
        ],
    ),
    (
        Role::Shim,
        &[
            Name::Suffix("runtime/v2/runc/v2.(*service).Delete"),
            Name::Suffix("runtime/v2/runc/task.(*service).Delete"),
            Name::Suffix("cmd/containerd-shim-runc-v2/task.(*service).Delete"),
        ],
    ),
    (
        Role::Kubelet,
        &[
            Name::Suffix("kubelet/pleg.(*GenericPLEG).relist"),
            Name::Suffix("kubelet/pleg.(*GenericPLEG).Relist"),
        ],
    ),
];

/// What a program is, told from the functions it contains; see [`Lookup::roles`].
pub fn roles(binary: &GoBinary<'_>) -> Vec<Role> {
    Lookup::of(binary).roles()
}

/// The first of [`roles`].
pub fn role(binary: &GoBinary<'_>) -> Option<Role> {
    roles(binary).first().copied()
}

/// Looks up everything that is probed in a program of this role; see [`Lookup::resolve`].
pub fn resolve(binary: &GoBinary<'_>, role: Role) -> Vec<Resolved> {
    Lookup::of(binary).resolve(role)
}

/// Entries for a role.
pub fn entries(role: Role) -> impl Iterator<Item = &'static Entry> {
    CATALOG.iter().filter(move |entry| entry.roles.contains(&role))
}

/// All functions of a binary that the catalog asks for, found in one pass over its symbol table.
pub struct Lookup<'b, 'a> {
    binary: &'b GoBinary<'a>,
    names: Vec<Name>,
    hits: Vec<Vec<Function>>,
}

impl<'b, 'a> Lookup<'b, 'a> {
    /// Makes the pass: a few milliseconds for the largest programs.
    pub fn of(binary: &'b GoBinary<'a>) -> Lookup<'b, 'a> {
        let mut names: Vec<Name> =
            MARKS.iter().flat_map(|mark| mark.1).chain(&RUNTIME_CALLS).copied().collect();
        for form in CATALOG.iter().flat_map(|entry| entry.forms) {
            names.push(form.name);
            if let Source::Message(_, message) = form.source {
                names.extend(message.accessors.iter().chain(message.reflection));
            }
        }
        names.sort_unstable();
        names.dedup();
        Lookup { binary, hits: binary.find(&names), names }
    }

    fn functions(&self, name: Name) -> &[Function] {
        let at = self.names.binary_search(&name).ok();
        at.and_then(|at| self.hits.get(at)).map_or(&[], Vec::as_slice)
    }

    /// What the program is, told from the functions it contains. A multi-call binary can be several things; the answer
    /// is empty for a program that takes no part.
    pub fn roles(&self) -> Vec<Role> {
        let has = |names: &[Name]| names.iter().any(|name| !self.functions(*name).is_empty());
        MARKS.iter().filter(|mark| has(mark.1)).map(|mark| mark.0).collect()
    }

    /// Everything that is probed in a program of this role. Every entry is in the answer, several times where the
    /// program has the function several times, and with refusals where it is absent or cannot be probed.
    pub fn resolve(&self, role: Role) -> Vec<Resolved> {
        let entries_of = |names: &[Name]| {
            names.iter().flat_map(|name| self.functions(*name)).map(|function| function.entry).collect()
        };
        let (grow_stack, short) = RUNTIME_CALLS.split_at(3);
        let runtime = RuntimeCalls { grow_stack: entries_of(grow_stack), short: entries_of(short) };
        let abi = self.binary.abi();
        let mut resolved = Vec::new();
        for entry in entries(role) {
            let before = resolved.len();
            for form in entry.forms {
                for &function in self.functions(form.name) {
                    let code = self.binary.code(function);
                    let begin = match (&code, &abi) {
                        (Ok(code), Ok(abi)) => code.begin(*abi, &runtime),
                        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
                    };
                    let ends = match (&code, entry.job) {
                        (_, job) if job != Job::Span => Ok(Vec::new()),
                        (Ok(code), _) => code.ends(entry.error_result.is_some(), &runtime),
                        (Err(why), _) => Err(why.clone()),
                    };
                    resolved.push(Resolved {
                        entry,
                        function: Some((self.binary.name(function), function)),
                        text: form.text,
                        places: self.places(form.source),
                        begin,
                        ends,
                    });
                }
            }
            if resolved.len() == before {
                let tried: Vec<&str> = entry.forms.iter().map(|form| form.name.text()).collect();
                let absent = Refusal::new(format!("the program has no function {}", tried.join(", nor ")));
                resolved.push(Resolved {
                    entry,
                    function: None,
                    text: Text::None,
                    places: Vec::new(),
                    begin: Err(absent.clone()),
                    ends: Err(absent),
                });
            }
        }
        resolved
    }

    /// Where a string is, in a program of this layout: candidates, best first.
    pub(super) fn places(&self, source: Source) -> Vec<Place> {
        match source {
            Source::None => Vec::new(),
            Source::Words(words) => words.iter().map(|word| Place::Words(*word)).collect(),
            Source::Field(word, offset) => vec![Place::Field { word, offset }],
            Source::Message(word, message) => {
                let functions = message.accessors.iter().flat_map(|name| self.functions(*name));
                let read =
                    functions.filter_map(|function| self.binary.code(*function).ok()?.string_field()).next();
                let reflection = || message.reflection.iter().any(|name| !self.functions(*name).is_empty());
                let offsets = match read {
                    Some(offset) => vec![offset],
                    // protobuf-go puts three words of its own first, or one in newer output.
                    None if reflection() => vec![40, 8],
                    // gogo puts the fields first.
                    None => vec![0],
                };
                offsets.into_iter().map(|offset| Place::Field { word, offset }).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_go_kind_is_covered_and_no_name_stands_for_two_things() {
        for role in [Role::Containerd, Role::Shim, Role::Kubelet] {
            let mut seen = HashSet::new();
            for form in entries(role).flat_map(|entry| entry.forms) {
                assert!(seen.insert(form.name.text()), "{role:?}: {:?} twice", form.name);
            }
        }
        let kinds: HashSet<Kind> = CATALOG.iter().map(|entry| entry.kind).collect();
        let kernel = [Kind::SuperShutdown, Kind::Sync];
        for kind in Kind::RECORDED.iter().filter(|kind| !kernel.contains(kind)) {
            assert!(kinds.contains(kind), "{kind:?} is probed nowhere");
        }
        assert!(entries(Role::Other).all(|entry| matches!(entry.kind, Kind::LockWait | Kind::LockHold)));
    }
}
