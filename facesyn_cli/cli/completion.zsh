# Completion of facesyn for zsh, written by `facesyn --install-completion`.
_facesyn() {
    local line
    local -a lines open closed
    lines=("${(@f)$(_FACESYN_COMPLETE=zsh _FACESYN_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" ${~words[1]} 2>/dev/null)}")
    for line in $lines; do
        case $line in
            (-*) open+=("${line[2,-1]}") ;;
            (+*) closed+=("${line[2,-1]}") ;;
        esac
    done
    if (( ! $#open && ! $#closed )); then
        _files
        return
    fi
    (( $#open )) && _describe facesyn open -S ''
    (( $#closed )) && _describe facesyn closed
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _facesyn facesyn
