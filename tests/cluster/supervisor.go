package main

// The supervisor: starts the components in order, reports when the cluster is ready, runs its
// caller's commands, and removes its files.
//
// On standard output it writes one line of JSON when the cluster is ready, and one for each command
// it was given on standard input (`stop NAME`, `start NAME`, and with --node `forward ADDRESS:PORT`). When its standard input ends or a
// signal comes, it stops everything and removes its files. Should it be killed, the kernel kills the
// components with it.

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	startTimeout = 60 * time.Second
	nodes        = 2
	// Ports are free when they are picked and may be taken when they are bound.
	starts = 3
)

//go:embed stages/nodes.yaml
var nodeStages string

//go:embed stages/pods.yaml
var podStages string

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  # No test reads what the cluster's own controllers do.
  - level: None
    users: ["system:apiserver"]
  - level: None
    userGroups: ["system:serviceaccounts:kube-system"]
  - level: Metadata
`

// cluster is one running control plane.
type cluster struct {
	dir        string
	kubeconfig string
	server     string
	components []*component
	// What the components themselves use; with a network of its own, not what others use.
	inner       string
	innerServer string
	network     *network
}

// component is one process of the cluster.
type component struct {
	name    string
	command []string
	files   []*os.File
	log     string
	process *exec.Cmd
	ended   chan struct{}
}

// ready is the line that reports to the caller where the cluster is.
type ready struct {
	Kubeconfig string `json:"kubeconfig"`
	Server     string `json:"server"`
	AuditLog   string `json:"audit_log"`
	Dir        string `json:"dir"`
}

func supervise(args []string) error {
	withNode := len(args) == 1 && args[0] == "--node"
	if len(args) > 0 && !withNode {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	// The components are killed when the thread that started them ends, so that thread must last.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	commands := make(chan string)
	go readLines(commands)

	c, err := startSomewhere(withNode)
	if err != nil {
		return err
	}
	defer c.remove()
	answer(ready{c.kubeconfig, c.server, c.auditLog(), c.dir})
	for {
		select {
		case <-signals:
			return nil
		case line, open := <-commands:
			if !open {
				return nil
			}
			if err := c.obey(line); err != nil {
				return err
			}
		}
	}
}

func readLines(lines chan<- string) {
	defer close(lines)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		lines <- input.Text()
	}
}

func answer(value any) {
	line, _ := json.Marshal(value)
	fmt.Println(string(line))
}

func (c *cluster) obey(line string) error {
	verb, name, _ := strings.Cut(line, " ")
	if verb == "forward" {
		address, err := c.forward(name)
		answer(map[string]string{"forward": address})
		return err
	}
	for _, component := range c.components {
		switch {
		case component.name != name:
		case verb == "stop":
			component.kill()
			answer(map[string]string{"stopped": name})
			return nil
		case verb == "start":
			if err := component.start(); err != nil {
				return err
			}
			if err := c.waitUntilReady(); err != nil {
				return err
			}
			answer(map[string]string{"started": name})
			return nil
		}
	}
	return fmt.Errorf("unknown command %q", line)
}

func startSomewhere(withNode bool) (*cluster, error) {
	var err error
	for range starts {
		var c *cluster
		if c, err = newCluster(withNode); err != nil {
			return nil, err
		}
		if err = c.start(); err == nil {
			return c, nil
		}
		err = fmt.Errorf("%w\n%s", err, c.logTails())
		c.remove()
	}
	return nil, err
}

func newCluster(withNode bool) (*cluster, error) {
	dir, err := os.MkdirTemp("", "action-executor-cluster-")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
	if err := c.prepare(withNode); err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

func (c *cluster) prepare(withNode bool) error {
	paths, err := writeCredentials(c.dir)
	if err != nil {
		return err
	}
	ports, err := freePorts(5)
	if err != nil {
		return err
	}
	c.innerServer = fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	c.server, c.inner = c.innerServer, c.kubeconfig
	if withNode {
		if c.network, err = newNetwork(); err != nil {
			return err
		}
		address, err := c.forward(fmt.Sprintf("127.0.0.1:%d", ports[2]))
		if err != nil {
			return err
		}
		c.server, c.inner = "https://"+address, filepath.Join(c.dir, "inner.kubeconfig")
	}
	for path, server := range map[string]string{c.kubeconfig: c.server, c.inner: c.innerServer} {
		if err := paths.writeKubeconfig(path, server, paths.adminCert, paths.adminKey); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"stages.yaml": nodeStages + "---\n" + podStages,
		"audit.yaml":  auditPolicy,
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	c.components = append(c.components, c.commands(paths, ports)...)
	if withNode {
		node, err := c.node(paths)
		if err != nil {
			return err
		}
		c.components = append(c.components, node...)
	}
	return nil
}

// commands holds every flag of every component.
func (c *cluster) commands(paths credentials, ports []int) []*component {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	// Pods find the API server through its Service, whose endpoint is what it advertises. A restart of
	// the server must not wait for its previous endpoint to expire.
	bind, advertise, reconciler := "127.0.0.1", "127.0.0.1", "none"
	if c.network != nil {
		bind, advertise, reconciler = "0.0.0.0", nodeAddress, "master-count"
	}
	return []*component{
		c.component("etcd",
			"--name=test", "--data-dir="+file("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
			"--initial-cluster=test="+peer),
		c.component("kube-apiserver",
			"--etcd-servers="+etcd, "--bind-address="+bind, "--advertise-address="+advertise,
			fmt.Sprintf("--secure-port=%d", ports[2]), "--cert-dir="+c.dir,
			"--tls-cert-file="+paths.serverCert, "--tls-private-key-file="+paths.serverKey,
			"--client-ca-file="+paths.ca,
			"--service-account-key-file="+paths.accountKey,
			"--service-account-signing-key-file="+paths.accountKey,
			"--service-account-issuer=https://kubernetes.default.svc",
			"--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.0.0.0/24",
			"--allow-privileged", "--event-ttl=1h",
			"--endpoint-reconciler-type="+reconciler,
			"--kubelet-client-certificate="+paths.adminCert, "--kubelet-client-key="+paths.adminKey,
			"--kubelet-preferred-address-types=InternalIP",
			"--audit-policy-file="+file("audit.yaml"), "--audit-log-path="+c.auditLog(),
			// Tests read it from an offset, so it must not be rotated at the default of 100 MB.
			"--audit-log-maxsize=10000"),
		c.component("kube-controller-manager",
			"--kubeconfig="+c.inner, "--leader-elect=false", "--secure-port=0",
			"--use-service-account-credentials", "--root-ca-file="+paths.ca,
			"--service-account-private-key-file="+paths.accountKey,
			// The tests make hundreds of nodes, whose Leases are renewed less often than by default: see kwok.
			"--node-monitor-grace-period=8m",
			// The default of 20 calls a second for each controller makes tests that run side by side wait for seconds.
			"--kube-api-qps=1000", "--kube-api-burst=2000"),
		c.component("kube-scheduler",
			"--kubeconfig="+c.inner, "--leader-elect=false", "--secure-port=0",
			"--kube-api-qps=1000", "--kube-api-burst=2000"),
		c.component("kwok",
			"--kubeconfig="+c.inner, "--config="+file("stages.yaml"),
			"--manage-all-nodes=false", "--manage-nodes-with-annotation-selector="+fakeKey+"="+fakeValue,
			"--node-lease-duration-seconds=400",
			fmt.Sprintf("--server-address=127.0.0.1:%d", ports[3])),
	}
}

// component finds the program: one that KUBEBUILDER_ASSETS offers, one beside us, ourselves under
// another name, or one that is installed.
func (c *cluster) component(name string, args ...string) *component {
	self, _ := os.Executable()
	path := filepath.Join(c.dir, "bin", name)
	switch {
	case name == "containerd":
		path = name
	default:
		_ = os.MkdirAll(filepath.Dir(path), 0o700)
		_ = os.Symlink(self, path)
	}
	for _, dir := range []string{os.Getenv("KUBEBUILDER_ASSETS"), filepath.Dir(self)} {
		candidate := filepath.Join(dir, name)
		if info, err := os.Stat(candidate); dir != "" && err == nil && !info.IsDir() {
			path = candidate
			break
		}
	}
	command := append([]string{path}, args...)
	if c.network != nil {
		command = c.network.inside(command)
	}
	return &component{name: name, command: command, log: filepath.Join(c.dir, name+".log")}
}

func (c *cluster) auditLog() string { return filepath.Join(c.dir, "audit.log") }

func (c *cluster) start() error {
	for _, component := range c.components {
		// An open forward reaches the restarted component too.
		if component.process != nil {
			continue
		}
		if err := component.start(); err != nil {
			return err
		}
		// The others end at once where there is no API server to talk to.
		if component.name == "kube-apiserver" {
			if err := c.waitUntilReady(); err != nil {
				return err
			}
		}
	}
	if c.network != nil {
		if err := c.importPause(); err != nil {
			return err
		}
	}
	return c.populate()
}

// start starts the process, which ends with us.
func (p *component) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.process = exec.Command(p.command[0], p.command[1:]...)
	p.process.Stdout, p.process.Stderr, p.process.ExtraFiles = log, log, p.files
	// Garbage collection is a fifth of the API server's processor time with Go's default of 100.
	p.process.Env = append(os.Environ(), "GOGC=400")
	p.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.process.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		_ = process.Wait()
		close(ended)
	}(p.process, p.ended)
	return nil
}

func (p *component) kill() {
	if p.process != nil {
		_ = p.process.Process.Kill()
		<-p.ended
	}
}

func (p *component) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (c *cluster) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

func (c *cluster) waitUntilReady() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.eventually("the API server is ready", func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// populate creates the nodes that kwok simulates and waits until a pod could be made. Beside a real node
// they are tainted, so that only those pods come to them that ask for it.
func (c *cluster) populate() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	for i := range nodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name:        fmt.Sprintf("node-%d", i),
			Labels:      map[string]string{"kubernetes.io/hostname": fmt.Sprintf("node-%d", i)},
			Annotations: map[string]string{fakeKey: fakeValue},
		}}
		if c.network != nil {
			node.Spec.Taints = []corev1.Taint{{Key: fakeKey, Value: fakeValue, Effect: corev1.TaintEffectNoSchedule}}
		}
		err := c.eventually("a node is made", func(ctx context.Context) error {
			_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return c.eventually("nodes and service accounts are there", func(ctx context.Context) error {
		list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		expected := nodes
		if c.network != nil {
			expected++
		}
		if len(list.Items) < expected {
			return fmt.Errorf("there are %d nodes", len(list.Items))
		}
		for _, node := range list.Items {
			if !isReady(node) || isTainted(node) {
				return fmt.Errorf("node %s is not ready", node.Name)
			}
		}
		_, err = client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// isTainted reports foreign taints: those of a node that has just come.
func isTainted(node corev1.Node) bool {
	for _, taint := range node.Spec.Taints {
		if taint.Key != fakeKey {
			return true
		}
	}
	return false
}

func isReady(node corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// eventually tries until it succeeds, a component ends, or the time is up.
func (c *cluster) eventually(what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		for _, component := range c.components {
			if component.process != nil && component.hasEnded() {
				return fmt.Errorf("%s has ended before %s", component.name, what)
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("not in time: %s", what), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// logTails are the ends of the logs of those that ended.
func (c *cluster) logTails() string {
	var words strings.Builder
	for _, component := range c.components {
		if component.process == nil || !component.hasEnded() {
			continue
		}
		log, _ := os.ReadFile(component.log)
		log = log[max(0, len(log)-2000):]
		fmt.Fprintf(&words, "--- end of the log of %s\n%s\n", component.name, log)
	}
	return words.String()
}

func (c *cluster) remove() {
	for i := len(c.components) - 1; i >= 0; i-- {
		if c.components[i].process != nil {
			c.components[i].kill()
		}
	}
	if c.network != nil {
		c.removeNode()
	}
	_ = os.RemoveAll(c.dir)
}

func freePorts(count int) ([]int, error) {
	var ports []int
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// All stay open until all are picked, so that none is picked twice.
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
