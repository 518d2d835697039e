// Command bare is the smallest HTTP program: the baseline of the time from start to ready.
package main

import (
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	if err := http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil); err != nil {
		panic(err)
	}
}
