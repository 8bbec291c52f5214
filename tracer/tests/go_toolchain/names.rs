//! Stand-ins for programs that no distribution packages: Go packages with the paths, types and layouts of a new kubelet
//! and a containerd 2.2, and of an old kubelet, so that names are those that real compilers write.

use std::path::Path;

/// Kubelet 1.31 and containerd 2.2: exported Relist, cri-client with contexts, protobuf-go messages of the newer layout.
pub const NEW: &[(&str, &str)] = &[
    (
        "k8s.io/kubernetes/pkg/kubelet/pleg/generic.go",
        r#"package pleg
type GenericPLEG struct{ List func() }
//go:noinline
func (g *GenericPLEG) Relist() { g.List() }
"#,
    ),
    (
        "k8s.io/cri-client/pkg/remote.go",
        r#"package cri
import "context"
type remoteRuntimeService struct{ call func(string) }
func New(f func(string)) *remoteRuntimeService { return &remoteRuntimeService{f} }
//go:noinline
func (r *remoteRuntimeService) ListContainers(ctx context.Context) error { r.call(""); return nil }
//go:noinline
func (r *remoteRuntimeService) ContainerStatus(ctx context.Context, id string, verbose bool) error { r.call(id); return nil }
"#,
    ),
    (
        "k8s.io/cri-api/pkg/apis/runtime/v1/api.go",
        r#"package v1
type UpdateContainerResourcesRequest struct {
	state       uintptr
	ContainerId string
	Linux       *int
}
func (x *UpdateContainerResourcesRequest) GetContainerId() string {
	if x != nil {
		return x.ContainerId
	}
	return ""
}
"#,
    ),
    (
        "github.com/containerd/containerd/v2/internal/cri/instrument/service.go",
        r#"package instrument
import (
	"context"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)
type instrumentedService struct{ call func(string) }
func New(f func(string)) *instrumentedService { return &instrumentedService{f} }
//go:noinline
func (in *instrumentedService) ListContainers(ctx context.Context) { in.call("") }
//go:noinline
func (in *instrumentedService) UpdateContainerResources(ctx context.Context, r *runtime.UpdateContainerResourcesRequest) {
	in.call(r.ContainerId)
}
"#,
    ),
    (
        "github.com/containerd/containerd/v2/cmd/containerd/main.go",
        r#"package main
import (
	"context"
	"github.com/containerd/containerd/v2/internal/cri/instrument"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
	cri "k8s.io/cri-client/pkg"
)
var Getter interface{ GetContainerId() string }
func main() {
	show := func(s string) { println(s) }
	r := &runtime.UpdateContainerResourcesRequest{}
	Getter = r
	in := instrument.New(show)
	in.ListContainers(context.Background())
	in.UpdateContainerResources(context.Background(), r)
	(&pleg.GenericPLEG{List: func() { show(Getter.GetContainerId()) }}).Relist()
	c := cri.New(show)
	_ = c.ListContainers(context.Background())
	_ = c.ContainerStatus(context.Background(), "", true)
}
"#,
    ),
];

/// Kubelet 1.19: unexported relist, exported RemoteRuntimeService without contexts.
pub const OLD: &[(&str, &str)] = &[
    (
        "k8s.io/kubernetes/pkg/kubelet/pleg/generic.go",
        r#"package pleg
type GenericPLEG struct{ List func() }
//go:noinline
func (g *GenericPLEG) relist() { g.List() }
func (g *GenericPLEG) Start() { g.relist() }
"#,
    ),
    (
        "k8s.io/kubernetes/pkg/kubelet/cri/remote/remote_runtime.go",
        r#"package remote
type RemoteRuntimeService struct{ Call func(string) }
//go:noinline
func (r *RemoteRuntimeService) ListContainers() error { r.Call(""); return nil }
//go:noinline
func (r *RemoteRuntimeService) ContainerStatus(id string) error { r.Call(id); return nil }
"#,
    ),
    (
        "k8s.io/kubernetes/cmd/kubelet/main.go",
        r#"package main
import (
	"k8s.io/kubernetes/pkg/kubelet/cri/remote"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
)
func main() {
	c := &remote.RemoteRuntimeService{Call: func(s string) { println(s) }}
	(&pleg.GenericPLEG{List: func() { _ = c.ListContainers() }}).Start()
	_ = c.ContainerStatus("")
}
"#,
    ),
];

/// Kubelet 1.31 as far as its PLEG's health goes: the threshold lies in memory.
pub const HEALTH: &[(&str, &str)] = &[
    (
        "k8s.io/apimachinery/pkg/util/wait/wait.go",
        r#"package wait
import "time"
func Until(f func(), period time.Duration, stop <-chan struct{}) { JitterUntil(f, period, stop) }
//go:noinline
func JitterUntil(f func(), period time.Duration, stop <-chan struct{}) {
	for {
		select { case <-stop: return; default: }
		f()
		select { case <-stop: return; case <-time.After(period): }
	}
}
"#,
    ),
    (
        "k8s.io/kubernetes/pkg/kubelet/pleg/generic.go",
        r#"package pleg
import ("fmt"; "time"; "sync"; "sync/atomic"; "k8s.io/apimachinery/pkg/util/wait")
type RelistDuration struct{ RelistPeriod, RelistThreshold time.Duration }
type Clock interface{ Since(time.Time) time.Duration; Now() time.Time }
type Gauge interface{ Set(float64) }
var PLEGLastSeen Gauge
type GenericPLEG struct {
	runtime interface{ GetPods() }
	eventChannel chan int
	podRecords map[string]int
	relistTime atomic.Value
	cache interface{ Get() }
	Clock Clock
	podsToReinspect map[string]int
	stopCh chan struct{}
	relistLock sync.Mutex
	isRunning bool
	runningMu sync.Mutex
	RelistDuration *RelistDuration
}
func (g *GenericPLEG) getRelistTime() time.Time {
	val := g.relistTime.Load()
	if val == nil { return time.Time{} }
	return val.(time.Time)
}
//go:noinline
func (g *GenericPLEG) Relist() {
	g.relistLock.Lock(); defer g.relistLock.Unlock()
	g.relistTime.Store(g.Clock.Now())
}
func (g *GenericPLEG) Start() {
	g.runningMu.Lock(); defer g.runningMu.Unlock()
	if !g.isRunning {
		g.isRunning = true
		g.stopCh = make(chan struct{})
		go wait.Until(g.Relist, g.RelistDuration.RelistPeriod, g.stopCh)
	}
}
func (g *GenericPLEG) Healthy() (bool, error) {
	relistTime := g.getRelistTime()
	if relistTime.IsZero() { return false, fmt.Errorf("pleg has yet to be successful") }
	PLEGLastSeen.Set(float64(relistTime.Unix()))
	elapsed := g.Clock.Since(relistTime)
	if elapsed > g.RelistDuration.RelistThreshold {
		return false, fmt.Errorf("pleg was last seen active %v ago; threshold is %v", elapsed, g.RelistDuration.RelistThreshold)
	}
	return true, nil
}
"#,
    ),
    (
        "k8s.io/kubernetes/cmd/kubelet/main.go",
        r#"package main
import ("time"; "fmt"; "os"; "k8s.io/kubernetes/pkg/kubelet/pleg")
type c struct{}
func (c) Since(t time.Time) time.Duration { return time.Since(t) }
func (c) Now() time.Time { return time.Now() }
func (c) Set(float64) {}
type H interface{ Healthy() (bool, error) }
func main() {
	pleg.PLEGLastSeen = c{}
	g := &pleg.GenericPLEG{Clock: c{}, RelistDuration: &pleg.RelistDuration{RelistPeriod: time.Second, RelistThreshold: 177 * time.Second}}
	g.Start()
	var h H = g
	fmt.Println(h.Healthy())
	os.Stdin.Read(make([]byte, 1))
	fmt.Println(h.Healthy())
	os.Exit(0)
}
"#,
    ),
];

/// Writes the packages below `path/src`.
pub fn write(path: &Path, sources: &[(&str, &str)]) {
    for (name, text) in sources {
        let file = path.join("src").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
}
