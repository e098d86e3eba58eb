// Makes a container image from files, without Docker and without a registry: a single layer without a base image,
// as an OCI image layout in a tar file, which `ctr images import`, `podman load` and `skopeo` read. The
// same files give the same bytes.
//
//	image -tag test/pause:1 -entrypoint /pause -output pause.tar path/to/pause:/pause
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"time"
)

type object = map[string]any

func main() {
	tag := flag.String("tag", "", "the image's name")
	entrypoint := flag.String("entrypoint", "", "what it runs")
	user := flag.String("user", "65532:65532", "whom it runs as")
	output := flag.String("output", "", "the tar file to write")
	flag.Parse()
	if err := write(*output, *tag, *entrypoint, *user, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func write(output, tag, entrypoint, user string, files []string) error {
	layer, err := layer(files)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	blobs := tar.NewWriter(&archive)
	config := encode(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{
			"Entrypoint": []string{entrypoint}, "User": user, "Env": []string{"PATH=/"},
		},
		"rootfs": object{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	manifest := encode(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe(config, "application/vnd.oci.image.config.v1+json"),
		"layers": []object{describe(layer, "application/vnd.oci.image.layer.v1.tar")},
	})
	described := describe(manifest, "application/vnd.oci.image.manifest.v1+json")
	described["annotations"] = object{
		"io.containerd.image.name":          "docker.io/" + tag,
		"org.opencontainers.image.ref.name": tag,
	}
	index := encode(object{"schemaVersion": 2, "manifests": []object{described}})
	for _, blob := range [][]byte{config, layer, manifest} {
		if err := add(blobs, "blobs/sha256/"+strings.TrimPrefix(digest(blob), "sha256:"), 0o644, blob); err != nil {
			return err
		}
	}
	if err := add(blobs, "index.json", 0o644, index); err != nil {
		return err
	}
	if err := add(blobs, "oci-layout", 0o644, encode(object{"imageLayoutVersion": "1.0.0"})); err != nil {
		return err
	}
	if err := blobs.Close(); err != nil {
		return err
	}
	return os.WriteFile(output, archive.Bytes(), 0o644)
}

// layer holds each SOURCE:DESTINATION, and the directories that lead there.
func layer(files []string) ([]byte, error) {
	var bytes bytes.Buffer
	writer := tar.NewWriter(&bytes)
	made := map[string]bool{"/": true}
	for _, file := range files {
		source, destination, found := strings.Cut(file, ":")
		if !found {
			return nil, fmt.Errorf("%q is not SOURCE:DESTINATION", file)
		}
		for _, directory := range parents(destination) {
			if made[directory] {
				continue
			}
			made[directory] = true
			header := &tar.Header{Typeflag: tar.TypeDir, Name: directory[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}
			if err := writer.WriteHeader(header); err != nil {
				return nil, err
			}
		}
		content, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		if err := add(writer, destination[1:], 0o755, content); err != nil {
			return nil, err
		}
	}
	return bytes.Bytes(), writer.Close()
}

func parents(file string) []string {
	directory := path.Dir(file)
	if directory == "/" {
		return nil
	}
	return append(parents(directory), directory)
}

func add(writer *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Name: name, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
	if err := writer.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(writer, bytes.NewReader(content))
	return err
}

func describe(blob []byte, kind string) object {
	return object{"mediaType": kind, "digest": digest(blob), "size": len(blob)}
}

func digest(blob []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(blob)) }

func encode(value any) []byte {
	bytes, _ := json.Marshal(value)
	return bytes
}
